package stream

import (
	"crypto/rand"
	"sync"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/proto/errs"
)

const (
	// ticketLife is how long a URL may be used, once.
	ticketLife = time.Minute
	// ticketLimit is how many URLs may be waiting to be used. The kubelet uses each at once.
	ticketLimit = 4096
)

// ticket is one promised stream; exactly one of the three is set.
type ticket struct {
	exec    *cri.ExecRequest
	attach  *cri.AttachRequest
	forward *cri.PortForwardRequest
	until   time.Time
}

func (t ticket) container() string {
	if t.exec != nil {
		return t.exec.GetContainerId()
	}
	return t.attach.GetContainerId()
}

// tickets are the streams that were promised and not asked for yet, by the path of their URL. Whoever reaches the server can
// ask for any path: what was never promised is not remembered.
type tickets struct {
	mu      sync.Mutex
	pending map[string]ticket
}

// issue gives out a path below verb that nobody can guess: 130 random bits.
func (ts *tickets) issue(verb string, t ticket, now time.Time) (path string, err error) {
	t.until = now.Add(ticketLife)
	ts.mu.Lock()
	defer ts.mu.Unlock()
	for path, old := range ts.pending {
		if old.until.Before(now) {
			delete(ts.pending, path)
		}
	}
	if len(ts.pending) >= ticketLimit {
		return "", errs.ResourceExhausted.Errorf("%d streams were asked for and not opened yet: try again in %v", len(ts.pending), ticketLife)
	}
	path = verb + rand.Text()
	ts.pending[path] = t
	return path, nil
}

// spend takes a path out of use. It says whether there is a stream.
func (ts *tickets) spend(path string, now time.Time) (ticket, bool) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	t, ok := ts.pending[path]
	delete(ts.pending, path)
	return t, ok && !t.until.Before(now)
}
