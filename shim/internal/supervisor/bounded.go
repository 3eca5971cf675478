package supervisor

import (
	"context"
	"os"
	"runtime/debug"
	"time"

	"github.com/berth-project/berth/proto/errs"
)

const (
	// planLimit ends a start or an exec whose process hangs before its execve, on a dead file server for example.
	planLimit = 2 * time.Minute
	// makers is how many starts and execs are under way at once. One that hangs in the kernel keeps its place, and a
	// thread, until the kernel lets it go.
	makers = 64
	// turnLimit is how long one waits for its turn.
	turnLimit = time.Minute
	// hangLimit is how much longer than its limit a start or exec is waited for: package launch takes up to 4 s of it to
	// see a process die, or not die.
	hangLimit = 6 * time.Second
)

// within is the limit of a request that asks for limit.
func within(limit time.Duration) time.Duration {
	if limit <= 0 {
		return planLimit
	}
	return min(limit, planLimit)
}

type outcome struct {
	reply any
	out   []*os.File
	err   error
}

// discard gives up what came too late.
func (o outcome) discard() {
	if r, ok := o.reply.(interface{ Sent() }); ok {
		r.Sent()
	}
}

// bounded runs work, which owns fds, within a limit. A system call of the supervisor itself may hang as well as its child,
// when it looks at the source of a volume; then the answer comes all the same, and work ends by its own, with an error,
// since its context has ended.
func (s *Supervisor) bounded(ctx context.Context, limit time.Duration, fds []*os.File, work func(context.Context) (any, []*os.File, error)) (any, []*os.File, error) {
	limit = within(limit)
	if err := s.turn(ctx); err != nil {
		closeAll(fds)
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	done := make(chan outcome, 1)
	go func() { //nolint:gocritic // not waited for at the end of the program: it may hang
		defer cancel()
		defer func() { <-s.makers }()
		defer func() {
			if r := recover(); r != nil {
				done <- outcome{err: errs.Internal.Errorf("panic: %v\n%s", r, debug.Stack())}
			}
		}()
		reply, out, err := work(ctx)
		done <- outcome{reply: reply, out: out, err: err}
	}()
	t := time.NewTimer(limit + hangLimit)
	defer t.Stop()
	select {
	case o := <-done:
		return o.reply, o.out, o.err
	case <-t.C:
		go func() { (<-done).discard() }()
		return nil, nil, errs.DeadlineExceeded.Errorf("not done within %v, and not to be ended: the supervisor itself hangs in the kernel, on the source of a volume or on an image's files", limit)
	}
}

// turn waits for a place among the makers.
func (s *Supervisor) turn(ctx context.Context) error {
	select {
	case s.makers <- struct{}{}:
		return nil
	default:
	}
	t := time.NewTimer(turnLimit)
	defer t.Stop()
	select {
	case s.makers <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return errs.Unavailable.Errorf("%d starts and execs before this one hang, none has ended for %v", makers, turnLimit)
	}
}
