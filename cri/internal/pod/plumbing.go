package pod

import (
	"context"
	"io"
	"os"
	"sync"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/proto/errs"
	v1 "github.com/berth-project/berth/proto/shim/v1"
)

// plumbing is a pipe for each of a client's streams: our ends are copied from and to the client, theirs go to a
// process or a supervisor.
type plumbing struct {
	names  []string
	theirs []*os.File
	ours   []*os.File
	copies []func()
	out    sync.WaitGroup
	sinks  []*os.File // our read ends
}

func newPlumbing(s Streams) (*plumbing, error) {
	pl := &plumbing{}
	if s.In != nil {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		pl.add(v1.HandleStdin, r, w)
		pl.copies = append(pl.copies, func() {
			go func() { //nolint:gocritic // ends with the client's stream or the process's end of the pipe
				_, _ = io.Copy(w, s.In)
				_ = w.Close()
			}()
		})
	}
	for name, to := range map[string]io.Writer{v1.HandleStdout: s.Out, v1.HandleStderr: s.Err} {
		if wc, ok := to.(io.WriteCloser); !ok || wc == nil {
			continue
		}
		r, w, err := os.Pipe()
		if err != nil {
			pl.close()
			return nil, err
		}
		pl.add(name, w, r)
		pl.sinks = append(pl.sinks, r)
		pl.copies = append(pl.copies, func() {
			pl.out.Go(func() {
				if _, err := io.Copy(to, r); err != nil {
					_ = r.Close() // the client is gone: its writer gets EPIPE instead of a full pipe
				}
			})
		})
	}
	return pl, nil
}

func (pl *plumbing) add(name string, theirs, ours *os.File) {
	pl.names = append(pl.names, name)
	pl.theirs = append(pl.theirs, theirs)
	pl.ours = append(pl.ours, ours)
}

// start closes their ends, which are now held by whom they were passed to, and copies.
func (pl *plumbing) start() {
	for _, f := range pl.theirs {
		_ = f.Close()
	}
	for _, c := range pl.copies {
		c()
	}
}

// drain waits for the output's end, briefly if something still holds it open.
func (pl *plumbing) drain() {
	for _, f := range pl.sinks {
		_ = f.SetReadDeadline(time.Now().Add(drainLimit))
	}
	pl.out.Wait()
}

func (pl *plumbing) close() {
	for _, f := range append(pl.theirs, pl.ours...) {
		_ = f.Close() // closing twice is harmless
	}
}

// Attach connects a client's streams to a running container until the container ends, the client's streams do,
// or ctx does.
func (m *Manager) Attach(ctx context.Context, id string, s Streams) error {
	c, err := m.Container(id)
	if err != nil {
		return err
	}
	if st := c.State().CRI(); st != cri.ContainerState_CONTAINER_RUNNING {
		return errs.FailedPrecondition.Errorf("container %s is %s, not running", c.ID, st)
	}
	if s.TTY {
		own, err := m.shims.Console(c.ID)
		if err != nil {
			return err
		}
		defer own.Close() //nolint:errcheck // a terminal
		stop := resizeFrom(s.Resize, own)
		defer stop()
	}
	pl, err := newPlumbing(s)
	if err != nil {
		return err
	}
	defer pl.close()
	if err := m.shims.Attach(ctx, c.ID, pl.names, pl.theirs); err != nil {
		return err
	}
	pl.start()
	ended := make(chan struct{})
	go func() { //nolint:gocritic // ends when close, in the end, closes our read ends
		defer close(ended)
		pl.out.Wait()
		if len(pl.sinks) == 0 {
			<-c.done
		}
	}()
	select {
	case <-ended:
		return nil
	case <-c.done:
		pl.drain()
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
