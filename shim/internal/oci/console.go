package oci

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// consoleSocket is where the program sends the terminal's master (runc's --console-socket).
type consoleSocket struct {
	path string
	fd   int
}

func listenConsole(dir string) (*consoleSocket, error) {
	f, err := os.CreateTemp(dir, "console-*")
	if err != nil {
		return nil, err
	}
	path := f.Name()
	_ = f.Close()
	_ = os.Remove(path)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	err = unix.Bind(fd, &unix.SockaddrUnix{Name: path})
	if err == nil {
		err = unix.Listen(fd, 1)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("console socket %s: %w", path, err)
	}
	return &consoleSocket{path: path, fd: fd}, nil
}

func (c *consoleSocket) close() {
	_ = unix.Close(c.fd)
	_ = os.Remove(c.path)
}

// receive takes the master. The program has ended, so what it sent is there.
func (c *consoleSocket) receive() (*os.File, error) {
	conn, _, err := unix.Accept4(c.fd, unix.SOCK_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("the runtime sent no console: %w", err)
	}
	defer unix.Close(conn) //nolint:errcheck // a socket
	buf, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(conn, buf, oob, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
	if err != nil {
		return nil, fmt.Errorf("the runtime sent no console: %w", err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) != 1 {
		return nil, fmt.Errorf("console message: %w", err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("console message: %w", err)
	}
	_ = unix.SetNonblock(fds[0], true)
	return os.NewFile(uintptr(fds[0]), "console"), nil //nolint:gosec // a descriptor
}
