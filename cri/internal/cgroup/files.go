package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// write sets a cgroup file. It makes the three system calls itself, because os.OpenFile asks for a file's flags and
// offers it to the runtime's poller, which doubles the calls of a container's start. A write that a signal
// interrupts (a limit that waits for memory to be freed) is made again.
func write(file, text string) error {
	fd, err := open(file, unix.O_WRONLY)
	if err != nil {
		return err
	}
	return errors.Join(put(fd, text), unix.Close(fd))
}

func put(fd int, text string) error {
	for {
		switch _, err := unix.Write(fd, []byte(text)); {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("write %q: %w", text, err)
		default:
			return nil
		}
	}
}

// read is a small cgroup file, without the space around it.
func read(file string) (string, error) {
	fd, err := open(file, unix.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd) //nolint:errcheck // read only
	var buf [4096]byte
	for {
		n, err := unix.Read(fd, buf[:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return "", &os.PathError{Op: "read", Path: file, Err: err}
		}
		return string(bytes.TrimSpace(buf[:n])), nil
	}
}

func open(file string, flags int) (int, error) {
	for {
		fd, err := unix.Open(file, flags|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return -1, &os.PathError{Op: "open", Path: file, Err: err}
		}
		return fd, nil
	}
}

// openRaw opens a file that the runtime's poller is not told of.
func openRaw(file string, flags int) (*os.File, error) {
	fd, err := open(file, flags)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), file), nil
}
