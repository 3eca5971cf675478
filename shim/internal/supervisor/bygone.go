package supervisor

import (
	"time"

	"github.com/berth-project/berth/proto/errs"
)

// bygoneFor is how long it is remembered that something was removed before it was there: much longer than a request that was
// read takes to take effect.
const bygoneFor = time.Minute

// giveUp remembers an id that was removed while there was nothing of its own. The requests of a connection are handled all at
// once: the one that makes or adopts what is removed here may have been sent before, and come after. s.mu is held.
func (s *Supervisor) giveUp(id string) {
	now := time.Now()
	for old, until := range s.bygone {
		if until.Before(now) {
			delete(s.bygone, old)
		}
	}
	s.bygone[id] = now.Add(bygoneFor)
}

// givenUp refuses what comes after its removal. s.mu is held.
func (s *Supervisor) givenUp(id string) error {
	if until, ok := s.bygone[id]; ok && time.Now().Before(until) {
		return errs.FailedPrecondition.Errorf("%s was removed", id)
	}
	return nil
}
