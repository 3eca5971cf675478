// Package stdio moves the bytes of containers: from their output pipes or terminal into the CRI log and to whoever
// is attached, and from attached clients into their standard input.
//
// An idle container costs a few descriptors and structs here, no goroutine and no buffer: one epoll set watches
// all of them, and a goroutine with a pooled buffer runs only while there is something to read. Descriptors are
// shared with the daemon, so nothing here relies on O_NONBLOCK: a read follows a poll and is the only reader's.
package stdio

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// Poller is the epoll set. Use NewPoller, then Run.
type Poller struct {
	epfd int
	wake int // eventfd that ends Run

	mu   sync.Mutex
	next int32
	by   map[int32]*Watch
}

// Watch is a descriptor in a Poller: its function is called in a new goroutine when the descriptor is readable or
// hung up, once for each Arm.
type Watch struct {
	p  *Poller
	id int32
	fd int
	fn func()
}

// NewPoller makes an empty set.
func NewPoller() (*Poller, error) {
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	ev := unix.EpollEvent{Events: unix.EPOLLIN}
	if err := unix.EpollCtl(epfd, unix.EPOLL_CTL_ADD, wake, &ev); err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	return &Poller{epfd: epfd, wake: wake, by: map[int32]*Watch{}}, nil
}

// Run waits for events until ctx ends.
func (p *Poller) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _, _ = unix.Write(p.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}) })
	defer stop()
	events := make([]unix.EpollEvent, 64)
	for ctx.Err() == nil {
		n, err := unix.EpollWait(p.epfd, events, -1)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("epoll_wait: %w", err)
		}
		for _, ev := range events[:n] {
			p.mu.Lock()
			w := p.by[ev.Fd]
			p.mu.Unlock()
			if w != nil {
				go w.fn()
			}
		}
	}
	return nil
}

// Watch adds fd, which must stay open until Remove, and arms it.
func (p *Poller) Watch(fd int, fn func()) (*Watch, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.next++; p.next <= 0 || p.by[p.next] != nil; p.next++ {
		p.next = max(p.next, 0)
	}
	w := &Watch{p: p, id: p.next, fd: fd, fn: fn}
	p.by[w.id] = w
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLONESHOT, Fd: w.id}
	if err := unix.EpollCtl(p.epfd, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		delete(p.by, w.id)
		return nil, fmt.Errorf("epoll: %w", err)
	}
	return w, nil
}

// Arm asks for one more call of the function.
func (w *Watch) Arm() error {
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLONESHOT, Fd: w.id}
	return unix.EpollCtl(w.p.epfd, unix.EPOLL_CTL_MOD, w.fd, &ev)
}

// Remove ends the watch. A call of the function may still be running.
func (w *Watch) Remove() {
	w.p.mu.Lock()
	defer w.p.mu.Unlock()
	if w.p.by[w.id] == w {
		delete(w.p.by, w.id)
		_ = unix.EpollCtl(w.p.epfd, unix.EPOLL_CTL_DEL, w.fd, nil)
	}
}

// Readable tells whether a read of fd would not block; of a pidfd, whether its process is dead.
func Readable(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}} //nolint:gosec // a descriptor
	for {
		n, err := unix.Poll(fds, 0)
		if !errors.Is(err, unix.EINTR) {
			return n > 0
		}
	}
}
