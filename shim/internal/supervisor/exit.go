package supervisor

import (
	"encoding/json"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/berth-project/berth/internal/atomicfile"
	"github.com/berth-project/berth/internal/failpoint"
	v1 "github.com/berth-project/berth/proto/shim/v1"
	"github.com/berth-project/berth/shim/internal/reap"
)

// outputGrace is how long a container's end waits for the end of its output, which something it left behind may
// hold open.
const outputGrace = 250 * time.Millisecond

var (
	beforeRecord = failpoint.New("shim.exit.before_record")
	afterRecord  = failpoint.New("shim.exit.after_record")
)

// exitOf translates a process's end.
func exitOf(st reap.Status) v1.Exit {
	if st.Signal != 0 {
		return v1.Exit{Code: 128 + st.Signal, Signal: st.Signal, At: st.At}
	}
	return v1.Exit{Code: st.Code, At: st.At}
}

// exited records the end of a container's process and tells of it.
func (s *Supervisor) exited(c *container, e v1.Exit) {
	s.mu.Lock()
	c.ended = true
	s.mu.Unlock()
	// 1. the OOM count, while the cgroup is there
	if n := oomKills(c.cfg.OOMFile); n > 0 {
		e.OOMKilled = e.Code != 0
		s.notify(v1.EventOOM, v1.OOM{Container: c.cfg.ID, At: e.At})
	}
	// 2. the output
	c.io.EndInput()
	t := time.NewTimer(outputGrace)
	defer t.Stop()
	select {
	case <-c.io.Done():
	case <-t.C:
	}
	// 3. the record
	if err := beforeRecord.Hit(); err != nil {
		s.cfg.Log.Error("exit record", "container", c.cfg.ID, "err", err)
	}
	if err := writeExit(c.cfg.ExitFile, &e); err != nil {
		s.cfg.Log.Error("can not write the exit record", "container", c.cfg.ID, "err", err)
	}
	if err := afterRecord.Hit(); err != nil {
		s.cfg.Log.Error("exit record", "container", c.cfg.ID, "err", err)
	}
	// 4. the event
	s.mu.Lock()
	defer s.mu.Unlock()
	c.exit = &e
	close(c.over)
	for p := range s.peers {
		p.Notify(v1.EventExited, v1.Exited{Container: c.cfg.ID, Exit: e})
	}
}

func writeExit(path string, e *v1.Exit) error {
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	return atomicfile.WriteSealed(path, b, 0o600)
}

// readExit reads a record that an earlier shim wrote.
func readExit(path string) (*v1.Exit, bool) {
	b, err := atomicfile.ReadSealed(path)
	if err != nil {
		return nil, false
	}
	e := &v1.Exit{}
	return e, json.Unmarshal(b, e) == nil
}

// oomKills reads how often the kernel killed in the cgroup, 0 if that is not known.
func oomKills(file string) int {
	if file == "" {
		return 0
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "oom_kill "); ok {
			n, err := strconv.Atoi(strings.TrimSpace(v))
			if err == nil {
				return n
			}
		}
	}
	return 0
}
