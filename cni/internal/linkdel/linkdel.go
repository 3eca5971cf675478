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

// patience is how long the notification may take before the link is asked for instead.
const patience = 2 * time.Second

// Delete deletes the link of that index in the calling thread's namespace and returns when it is gone. A link
// that does not exist is no error.
func Delete(index int32) error {
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
	msg := rtnl.DelLink(index).Msg
	errno := forkSend(uintptr(send), unsafe.Pointer(&msg[0]), uintptr(len(msg)))
	_ = unix.Close(send)
	if errno == 0 {
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

// forkSend makes a child that writes n bytes at p to the netlink socket fd and exits. Between clone and exit the
// child makes raw system calls only: it is a copy of a Go process with one thread and no runtime. It closes
// every other descriptor first, so that nobody who waits for the end of our output waits for the child.
//
//go:nosplit
//go:norace
//go:noinline
func forkSend(fd uintptr, p unsafe.Pointer, n uintptr) syscall.Errno {
	pid, _, errno := syscall.RawSyscall6(syscall.SYS_CLONE, uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
	if errno != 0 || pid != 0 {
		return errno
	}
	if fd > 0 {
		syscall.RawSyscall(unix.SYS_CLOSE_RANGE, 0, fd-1, 0)
	}
	syscall.RawSyscall(unix.SYS_CLOSE_RANGE, fd+1, ^uintptr(0)>>32, 0)
	syscall.RawSyscall6(syscall.SYS_SENDTO, fd, uintptr(p), n, 0, 0, 0)
	for {
		syscall.RawSyscall(syscall.SYS_EXIT_GROUP, 0, 0, 0)
	}
}
