package supervisor

import (
	"context"
	"os"

	"github.com/berth-project/berth/proto/errs"
	v1 "github.com/berth-project/berth/proto/shim/v1"
	"github.com/berth-project/berth/shim/internal/stdio"
)

// find returns a container that was started.
func (s *Supervisor) find(id string) (*container, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.containers[id]
	if c == nil || c.starting {
		return nil, errs.NotFound.Errorf("container %s", id)
	}
	return c, nil
}

// attach connects a client to a container's streams.
func (s *Supervisor) attach(r *v1.Attach, fds []*os.File) error {
	if len(r.Stdio) != len(fds) {
		closeAll(fds)
		return errs.InvalidArgument.Errorf("%d stdio names and %d descriptors", len(r.Stdio), len(fds))
	}
	c, err := s.find(r.Container)
	if err != nil {
		closeAll(fds)
		return err
	}
	s.mu.Lock()
	over := c.ended || c.exit != nil
	s.mu.Unlock()
	if over {
		closeAll(fds)
		return errs.FailedPrecondition.Errorf("container %s does not run", r.Container)
	}
	return c.io.Attach(r.Stdio, fds)
}

// reopenLog makes a container's log file anew.
func (s *Supervisor) reopenLog(id string) error {
	c, err := s.find(id)
	if err != nil {
		return err
	}
	return c.io.Reopen()
}

// remove forgets an ended container and lets go of all it held. One whose process is dead, but whose end is not recorded yet,
// is waited for: the daemon may have the kernel's own word of it. One that is not there is not adopted for a minute.
func (s *Supervisor) remove(ctx context.Context, id string) error {
	if err := s.awaitEnd(ctx, id); err != nil {
		return err
	}
	s.mu.Lock()
	c := s.containers[id]
	switch {
	case c == nil:
		s.giveUp(id)
		s.mu.Unlock()
		return nil
	case c.starting, c.exit == nil:
		s.mu.Unlock()
		return errs.FailedPrecondition.Errorf("container %s has not ended", id)
	case c.removing:
		s.mu.Unlock()
		return errs.Aborted.Errorf("container %s is being deleted", id)
	}
	c.removing = true
	s.mu.Unlock()
	err := c.work.Remove(ctx)
	s.mu.Lock()
	c.removing = false
	if err == nil {
		delete(s.containers, id)
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	c.io.Close()
	_ = c.pidfd.Close()
	return nil
}

// awaitEnd waits for the record of a dead container's end. It returns at once if there is no such container, or if its process
// runs.
func (s *Supervisor) awaitEnd(ctx context.Context, id string) error {
	s.mu.Lock()
	c := s.containers[id]
	dead := c != nil && !c.starting && stdio.Readable(int(c.pidfd.Fd()))
	s.mu.Unlock()
	if !dead {
		return nil
	}
	select {
	case <-c.over:
		return nil
	case <-ctx.Done():
		return errs.DeadlineExceeded.Errorf("container %s is dead, its end is not recorded yet: %w", id, ctx.Err())
	}
}

// handles duplicates what the shim holds of one pod or container.
func (s *Supervisor) handles(r *v1.HandlesRequest) (any, []*os.File, error) {
	if r.Container != "" {
		c, err := s.find(r.Container)
		if err != nil {
			return nil, nil, err
		}
		names, files := c.handles()
		return &handlesReply{HandlesReply: v1.HandlesReply{Names: names}, lent: files}, files, nil
	}
	s.mu.Lock()
	p := s.pods[r.Pod]
	s.mu.Unlock()
	if p == nil {
		return nil, nil, errs.NotFound.Errorf("pod %q", r.Pod)
	}
	<-p.ready
	if p.err != nil {
		return nil, nil, p.err
	}
	files, err := p.dups()
	if err != nil {
		return nil, nil, err
	}
	names := p.kinds[:len(p.kinds):len(p.kinds)]
	if p.init != nil {
		names = append(names, v1.HandlePidfd)
	}
	return &handlesReply{HandlesReply: v1.HandlesReply{Names: names}, lent: files}, files, nil
}
