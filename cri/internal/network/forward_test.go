package network

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

// pair is a TCP connection on loopback: this side's end, and the pod's.
func pair(t *testing.T) (near net.Conn, pod *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close() //nolint:errcheck // test
	if near, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = errors.Join(near.Close(), c.Close()) })
	return near, c.(*net.TCPConn) //nolint:forcetypeassert // "tcp"
}

// client says something, then nothing more, and notes what it hears.
type client struct {
	io.Reader
	heard bytes.Buffer
}

func (c *client) Write(b []byte) (int, error) { return c.heard.Write(b) }

// endless is a client that never stops to send.
type endless struct{ client }

func (*endless) Read(b []byte) (int, error) { return len(b), nil }

func ends(t *testing.T, conn *forwarded, stream io.ReadWriter, within time.Duration) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- forward(conn, stream) }()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(within):
		t.Fatalf("it goes on %v after its client has left", within)
	}
	if _, err := conn.conn.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the connection is open: %v", err)
	}
}

// TestForwardEndsWithItsClient: a server that does not heed the end of its input keeps nothing.
func TestForwardEndsWithItsClient(t *testing.T) {
	near, _ := pair(t)
	ends(t, &forwarded{conn: near, farewell: 200 * time.Millisecond, congested: time.Minute}, &client{Reader: bytes.NewReader([]byte("bye"))}, 5*time.Second)
}

// TestForwardAnswers: a client that has only stopped to send gets all of an answer that keeps coming, however long it takes.
func TestForwardAnswers(t *testing.T) {
	near, pod := pair(t)
	go func() {
		_, _ = io.ReadAll(pod) // to the client's end
		for range 8 {
			time.Sleep(200 * time.Millisecond)
			_, _ = pod.Write([]byte("."))
		}
		_ = pod.CloseWrite()
	}()
	c := &client{Reader: bytes.NewReader([]byte("question"))}
	ends(t, &forwarded{conn: near, farewell: time.Second, congested: time.Minute}, c, 10*time.Second)
	if c.heard.String() != "........" {
		t.Errorf("of the answer came %q", c.heard.String())
	}
}

// TestForwardToTheDeaf: a server that takes nothing does not hold what its client sends for ever.
func TestForwardToTheDeaf(t *testing.T) {
	near, _ := pair(t)
	ends(t, &forwarded{conn: near, farewell: 100 * time.Millisecond, congested: 200 * time.Millisecond}, &endless{}, 10*time.Second)
}
