// Package linkdel deletes network links without waiting for what the kernel does after they are gone.
//
// RTM_DELLINK unregisters a veth pair in 0.3–0.5 ms: then no name, index, address or route of it exists in any
// namespace, and the RTM_DELLINK notification is out. The system call returns only 15–35 ms later, because the
// caller then sits through rcu_barrier() in netdev_run_todo(), with no lock held. A thread cannot be left behind
// for that: the process would not end. So the request is sent by a forked child that has no descriptor but the
// socket, does one system call and exits; the caller waits for the notification, never for the child.
package linkdel

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
	"unsafe"

	"github.com/berth-project/berth/cni/internal/nlwire"
	"github.com/berth-project/berth/cni/internal/rtnl"
	"golang.org/x/sys/unix"
)

// Way is how the waiting is done.
type Way int

const (
	// Child is for a process that ends with its answer.
	Child Way = iota
	// Thread is for one that goes on: it needs no child, which nobody would wait for.
	Thread
)

// patience is how long the notification may take before the link is asked for instead.
const patience = 2 * time.Second

// nap is how long a descriptor is held: one grace period, 8 ms here, and the wait for it, with a margin.
const nap = 40 * time.Millisecond

// Delete deletes the link of that index in the calling thread's namespace and returns when it is gone. A link
// that does not exist is no error. The descriptor hold is kept open until the kernel is done, see [Hold]; -1 for none.
func Delete(way Way, index int32, hold int) error {
	watch, err := nlwire.Dial(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer watch.Close() //nolint:errcheck // nothing buffered
	if err := watch.Join(unix.RTNLGRP_LINK); err != nil {
		return err
	}
	send, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return os.NewSyscallError("netlink socket", err)
	}
	if begin(way, send, hold, rtnl.DelLink(index).Msg) {
		if gone, err := awaitGone(watch, index); gone || err != nil {
			return err
		}
	}
	// No process to be had, or no notification: the slow way, which is right whatever happened.
	c, err := nlwire.Dial(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // nothing buffered
	return c.Do([]nlwire.Op{rtnl.DelLink(index)})
}

// begin sends the request where nobody waits for its end, and says whether it did. The socket is its own from here on.
func begin(way Way, send, hold int, msg []byte) bool {
	if way == Child {
		errno := fork(uintptr(send), uintptr(hold), unsafe.Pointer(&msg[0]), uintptr(len(msg)))
		_ = unix.Close(send)
		return errno == 0
	}
	Hold(way, hold)
	go func() { // ends with the kernel's work, some 40 ms
		_ = unix.Sendto(send, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}) // the notification tells
		_ = unix.Close(send)
	}()
	return true
}

// awaitGone waits for the notification that the link was deleted.
func awaitGone(watch *nlwire.Conn, index int32) (bool, error) {
	if err := watch.Timeout(patience); err != nil {
		return false, err
	}
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		ms, err := watch.Recv(true)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.ENOBUFS) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("wait for link %d to go: %w", index, err)
		}
		for _, m := range ms {
			if m.Type == unix.RTM_DELLINK && len(m.Body) >= unix.SizeofIfInfomsg && int32(nlwire.U32(m.Body[4:])) == index {
				return true, nil
			}
		}
	}
	return false, nil
}

// Hold keeps fd open for some time, so that its closing is nobody's to wait for. Closing an nf_tables socket after a
// transaction that deleted something waits until the kernel has freed it (nft_rcv_nl_event), one more wait for
// RCU that no answer depends on, and with the lock that everybody's next transaction needs. A child, or a timer, closes it
// only when that is over. If there can be none, the caller's own close waits.
func Hold(way Way, fd int) {
	if way == Thread {
		if fd < 0 {
			return
		}
		if dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err == nil {
			time.AfterFunc(nap, func() { _ = unix.Close(dup) })
		}
		return
	}
	var b [4]byte
	_ = fork(uintptr(fd), uintptr(fd), unsafe.Pointer(&b[0]), 0)
}

// fork makes a child that writes n bytes at p to the netlink socket fd, if n is not zero, and exits. Between
// clone and exit the child makes raw system calls only: it is a copy of a Go process with one thread and no
// runtime. It first closes every descriptor but fd and hold, so that nobody who waits for the end of our output
// waits for the child, then leaves our session.
//
//go:nosplit
//go:norace
//go:noinline
func fork(fd, hold uintptr, p unsafe.Pointer, n uintptr) syscall.Errno {
	lo, hi := fd, hold
	if int(hold) < 0 {
		hi = fd
	}
	if lo > hi {
		lo, hi = hi, lo
	}
	pid, _, errno := syscall.RawSyscall6(syscall.SYS_CLONE, uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
	if errno != 0 || pid != 0 {
		return errno
	}
	if lo > 0 {
		syscall.RawSyscall(unix.SYS_CLOSE_RANGE, 0, lo-1, 0)
	}
	if hi > lo+1 {
		syscall.RawSyscall(unix.SYS_CLOSE_RANGE, lo+1, hi-1, 0)
	}
	syscall.RawSyscall(unix.SYS_CLOSE_RANGE, hi+1, ^uintptr(0)>>32, 0)
	syscall.RawSyscall(unix.SYS_SETSID, 0, 0, 0)
	if n > 0 {
		syscall.RawSyscall6(syscall.SYS_SENDTO, fd, uintptr(p), n, 0, 0, 0)
	}
	rest := unix.Timespec{Nsec: int64(nap)}
	syscall.RawSyscall(syscall.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&rest)), 0, 0)
	for {
		syscall.RawSyscall(syscall.SYS_EXIT_GROUP, 0, 0, 0)
	}
}
