package network

import (
	"context"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// namespace is a new network namespace with its loopback up; do runs inside it.
func namespace(t *testing.T, do func()) *os.File {
	t.Helper()
	type result struct {
		f   *os.File
		err error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // the thread dies with this goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- result{nil, err}
			return
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		if err == nil {
			err = loopbackUp()
		}
		if err == nil && do != nil {
			do()
		}
		done <- result{f, err}
	}()
	r := <-done
	if r.err != nil {
		t.Fatal(r.err)
	}
	t.Cleanup(func() { _ = r.f.Close() })
	return r.f
}

func loopbackUp() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s) //nolint:errcheck // test
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, req)
}

func mounted(t *testing.T, path string) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(b), " "+path+" ")
}

func TestPin(t *testing.T) {
	l := newLab(t)
	ns := namespace(t, nil)
	var path string
	for range 3 { // repeating it is fine
		var err error
		if path, err = l.Pin("0123", ns); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
	if n := mounted(t, path); n != 1 {
		t.Errorf("%d mounts", n)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	a, b := netns.NsHandle(f.Fd()), netns.NsHandle(ns.Fd())
	if !a.Equal(b) {
		t.Errorf("%v is not %v", a, b)
	}
	_ = f.Close()
	for range 2 {
		if err := l.Unpin("0123"); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) || mounted(t, path) != 0 {
		t.Errorf("the pin is left: %v", err)
	}
	// a file that an interrupted pin left is taken over
	if err := os.WriteFile(path, nil, 0o444); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Pin("0123", ns); err != nil || mounted(t, path) != 1 {
		t.Errorf("%v", err)
	}
	if err := l.Unpin("0123"); err != nil {
		t.Error(err)
	}
}

func TestDialAndForward(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		var ln net.Listener
		ns := namespace(t, func() {
			var err error
			if ln, err = net.Listen("tcp", address); err != nil {
				t.Error(err)
			}
		})
		if ln == nil {
			t.FailNow()
		}
		go func() {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			b, _ := io.ReadAll(c) // until the client's end of writing
			_, _ = c.Write(append([]byte("echo "), b...))
			_ = c.Close()
		}()
		port := int32(ln.Addr().(*net.TCPAddr).Port)
		conn, err := Dial(t.Context(), ns, port)
		if err != nil {
			t.Fatalf("%s: %v", address, err)
		}
		client, server := net.Pipe()
		done := make(chan error, 1)
		go func() { done <- Forward(conn, half{server}) }()
		if _, err := client.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 10)
		if _, err := io.ReadFull(client, got); err != nil || string(got) != "echo hello" {
			t.Errorf("%s: %q, %v", address, got, err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		_ = ln.Close()
		_ = client.Close()
	}
	ns := namespace(t, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := Dial(ctx, ns, 1); err == nil || !strings.Contains(err.Error(), "port 1") {
		t.Errorf("nobody listens: %v", err)
	}
}

// half is a stream whose client says five bytes and then nothing more.
type half struct{ net.Conn }

func (h half) Read(b []byte) (int, error) {
	n, err := h.Conn.Read(b)
	if n == 5 {
		return n, io.EOF
	}
	return n, err
}
