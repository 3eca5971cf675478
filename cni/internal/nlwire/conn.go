package nlwire

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Conn is one netlink socket. It is used by one goroutine at a time and holds no other resource than its
// descriptor.
type Conn struct {
	fd  int
	seq uint32
}

// Dial opens a socket of the given protocol in the calling thread's network namespace; the socket stays there
// when the thread leaves.
func Dial(protocol int) (*Conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return nil, os.NewSyscallError("netlink socket", err)
	}
	// Strict checking makes dumps honour their filters (4.20); errors then carry no copy of the request (4.2).
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1)
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	// An unbound socket has port 0, as the kernel's own notifications have, and would be left out of them.
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, errors.Join(os.NewSyscallError("netlink bind", err), unix.Close(fd))
	}
	tv := unix.Timeval{Sec: 10}
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
	return &Conn{fd: fd}, nil
}

// Close closes the socket.
func (c *Conn) Close() error { return unix.Close(c.fd) }

// FD is the socket; it stays the connection's.
func (c *Conn) FD() int { return c.fd }

// Send sends the messages as one datagram, numbers them from the returned sequence number on, and makes the
// send buffer fit.
func (c *Conn) Send(msgs ...[]byte) (first uint32, err error) {
	first = c.seq + 1
	n := 0
	for _, m := range msgs {
		n += len(m)
	}
	buf := make([]byte, 0, n)
	for _, m := range msgs {
		c.seq++
		SetSeq(m, c.seq)
		buf = append(buf, m...)
	}
	if n > 100<<10 {
		if err := unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 2*n); err != nil {
			return 0, fmt.Errorf("netlink send buffer of %d bytes: %w", n, err)
		}
	}
	err = unix.Sendto(c.fd, buf, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	return first, os.NewSyscallError("netlink send", err)
}

// Recv reads one datagram and splits it. With wait false it returns no message when none is there.
func (c *Conn) Recv(wait bool) ([]Message, error) {
	flags := unix.MSG_TRUNC | unix.MSG_PEEK
	if !wait {
		flags |= unix.MSG_DONTWAIT
	}
	n, err := c.recv(nil, flags)
	if errors.Is(err, unix.EAGAIN) && !wait {
		return nil, nil
	}
	if err != nil {
		return nil, os.NewSyscallError("netlink receive", err)
	}
	buf := make([]byte, n)
	if n, err = c.recv(buf, 0); err != nil {
		return nil, os.NewSyscallError("netlink receive", err)
	}
	return Split(buf[:n])
}

func (c *Conn) recv(buf []byte, flags int) (int, error) {
	for {
		n, _, err := unix.Recvfrom(c.fd, buf, flags)
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// Do sends ops, each of which must ask for an acknowledgement, in one datagram and waits for every answer. All
// are carried out whatever becomes of the others; the error joins those that are not tolerated.
func (c *Conn) Do(ops []Op) error {
	if len(ops) == 0 {
		return nil
	}
	msgs := make([][]byte, len(ops))
	for i := range ops {
		msgs[i] = ops[i].Msg
	}
	first, err := c.Send(msgs...)
	if err != nil {
		return fmt.Errorf("%s: %w", ops[0].What, err)
	}
	var failed []error
	for left := len(ops); left > 0; {
		answers, err := c.Recv(true)
		if err != nil {
			return fmt.Errorf("%s: %w", ops[len(ops)-left].What, err)
		}
		for _, m := range answers {
			i := int(m.Seq - first)
			if m.Type != unix.NLMSG_ERROR || i < 0 || i >= len(ops) {
				continue
			}
			left--
			if errno := m.Errno(); errno != 0 && !ops[i].Tolerates(errno) {
				failed = append(failed, fmt.Errorf("%s: %w", ops[i].What, errno))
			}
		}
	}
	return errors.Join(failed...)
}

// batch is how many requests go into one datagram of [Conn.Batch]: 256 routes take some 30 KiB, and as many errors, if all
// fail, fit into a receive buffer of the default size.
const batch = 256

// Batch is Do for many ops: only the last of each datagram is acknowledged, the others answer when they fail. 3,000
// routes and entries take a third of the time that Do needs for them.
func (c *Conn) Batch(ops []Op) error {
	var failed []error
	for part := range slices.Chunk(ops, batch) {
		msgs := make([][]byte, len(part))
		for i := range part {
			msgs[i] = part[i].Msg
			clearFlags(msgs[i], unix.NLM_F_ACK)
		}
		AddFlags(msgs[len(msgs)-1], unix.NLM_F_ACK)
		first, err := c.Send(msgs...)
		if err != nil {
			return errors.Join(append(failed, fmt.Errorf("%s: %w", part[0].What, err))...)
		}
		errs, err := c.outcome(part, first)
		failed = append(failed, errs...)
		if err != nil {
			return errors.Join(append(failed, fmt.Errorf("%s and what follows: %w", part[0].What, err))...)
		}
	}
	return errors.Join(failed...)
}

// outcome reads answers until that to the last op.
func (c *Conn) outcome(ops []Op, first uint32) (failed []error, err error) {
	for {
		answers, err := c.Recv(true)
		if err != nil {
			return failed, err
		}
		for _, m := range answers {
			i := int(m.Seq - first)
			if m.Type != unix.NLMSG_ERROR || i < 0 || i >= len(ops) {
				continue
			}
			if errno := m.Errno(); errno != 0 && !ops[i].Tolerates(errno) {
				failed = append(failed, fmt.Errorf("%s: %w", ops[i].What, errno))
			}
			if i == len(ops)-1 {
				return failed, nil
			}
		}
	}
}

// Query sends one request and returns its answers: every part of a dump, or the one message of a get. The
// request must not ask for an acknowledgement.
func (c *Conn) Query(what string, msg []byte) ([]Message, error) {
	seq, err := c.Send(msg)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	var out []Message
	for {
		answers, err := c.Recv(true)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", what, err)
		}
		for _, m := range answers {
			if m.Seq != seq {
				continue
			}
			switch m.Type {
			case unix.NLMSG_DONE:
				return out, nil
			case unix.NLMSG_ERROR:
				return nil, fmt.Errorf("%s: %w", what, m.Errno())
			}
			out = append(out, m)
			if m.Flags&unix.NLM_F_MULTI == 0 {
				return out, nil
			}
		}
	}
}

// Join subscribes to a multicast group.
func (c *Conn) Join(group int) error {
	return os.NewSyscallError("netlink join", unix.SetsockoptInt(c.fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group))
}

// Timeout bounds each wait of [Conn.Recv]; the error is then EAGAIN. A new connection waits 10 s.
func (c *Conn) Timeout(d time.Duration) error {
	tv := unix.NsecToTimeval(d.Nanoseconds())
	return os.NewSyscallError("netlink timeout", unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv))
}

// Port is the socket's number, which notifications of what it caused carry; 0 if it cannot be asked for.
func (c *Conn) Port() uint32 {
	sa, err := unix.Getsockname(c.fd)
	if nl, ok := sa.(*unix.SockaddrNetlink); err == nil && ok {
		return nl.Pid
	}
	return 0
}
