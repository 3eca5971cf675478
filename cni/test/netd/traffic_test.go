package netd

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/berth-project/berth/cni/test/netlab"
)

// reaches says whether a ping with so many bytes of IP packet, which may not be cut up, comes back.
func reaches(from *netlab.NS, to string, size int) error {
	head := 28
	if v6(to) {
		head = 48
	}
	_, err := from.Try(fmt.Sprintf("ping -n -c 1 -W 1 -M do -s %d %s", size-head, to))
	return err
}

func v6(a string) bool { return net.ParseIP(a).To4() == nil }

// mustReach tries for three seconds: IPv6 leaves the first solicitation after a link came up unanswered.
func mustReach(t *testing.T, what string, from *netlab.NS, to string, size int) {
	t.Helper()
	var err error
	for start := time.Now(); time.Since(start) < 3*time.Second; {
		if err = reaches(from, to, size); err == nil {
			return
		}
	}
	t.Errorf("%s → %s, %d bytes: %v", what, to, size, err)
}

// mustNotReach tries once.
func mustNotReach(t *testing.T, what string, from *netlab.NS, to string, size int) {
	t.Helper()
	if reaches(from, to, size) == nil {
		t.Errorf("%s → %s, %d bytes: came through", what, to, size)
	}
}

// echo serves TCP in a namespace on a port of all addresses: it says who asks, a line, and then echoes.
func echo(t *testing.T, ns *netlab.NS, port int) {
	t.Helper()
	var l net.Listener
	if err := ns.Do(func() (err error) { l, err = net.Listen("tcp", fmt.Sprintf(":%d", port)); return err }); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close() //nolint:errcheck // a test's
				host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
				_, _ = fmt.Fprintf(c, "%-40s", host)
				_, _ = io.Copy(c, c)
			})
		}
	})
	t.Cleanup(func() { _ = l.Close() })
}

// dial connects from a namespace and returns who the other side says that it is.
func dial(from *netlab.NS, to string, port int) (net.Conn, string, error) {
	var c net.Conn
	err := from.Do(func() (err error) {
		c, err = net.DialTimeout("tcp", net.JoinHostPort(to, fmt.Sprint(port)), 3*time.Second)
		return err
	})
	if err != nil {
		return nil, "", err
	}
	b := make([]byte, 40)
	if err := c.SetReadDeadline(time.Now().Add(3 * time.Second)); err != nil {
		return nil, "", err
	}
	if _, err := io.ReadFull(c, b); err != nil {
		return nil, "", errors.Join(err, c.Close())
	}
	return c, trim(b), c.SetReadDeadline(time.Time{})
}

func trim(b []byte) string {
	for len(b) > 0 && b[len(b)-1] == ' ' {
		b = b[:len(b)-1]
	}
	return string(b)
}

// flow sends and gets a byte every few milliseconds over one connection, until it is stopped.
type flow struct {
	c    net.Conn
	stop chan struct{}
	done chan struct{}

	mu    sync.Mutex
	err   error
	last  time.Time
	worst time.Duration
	n     int
}

func newFlow(t *testing.T, from *netlab.NS, to string, port int) *flow {
	t.Helper()
	c, _, err := dial(from, to, port)
	if err != nil {
		t.Fatalf("flow to %s: %v", to, err)
	}
	f := &flow{c: c, stop: make(chan struct{}), done: make(chan struct{}), last: time.Now()}
	go f.run()
	t.Cleanup(func() { f.end(t) })
	return f
}

func (f *flow) run() {
	defer close(f.done)
	b := []byte{1}
	for {
		select {
		case <-f.stop:
			return
		case <-time.After(5 * time.Millisecond):
		}
		err := f.c.SetDeadline(time.Now().Add(20 * time.Second))
		if err == nil {
			_, err = f.c.Write(b)
		}
		if err == nil {
			_, err = io.ReadFull(f.c, b)
		}
		f.mu.Lock()
		f.worst, f.last = max(f.worst, time.Since(f.last)), time.Now()
		f.n++
		if err != nil {
			f.err = err
			f.mu.Unlock()
			return
		}
		f.mu.Unlock()
	}
}

// end stops the flow; it must have lived until now. It returns the longest pause.
func (f *flow) end(t *testing.T) time.Duration {
	t.Helper()
	select {
	case <-f.stop:
	default:
		close(f.stop)
		<-f.done
		_ = f.c.Close()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil && !errors.Is(f.err, os.ErrClosed) {
		t.Errorf("a connection broke after %d bytes: %v", f.n, f.err)
		f.err = nil
	}
	return f.worst
}
