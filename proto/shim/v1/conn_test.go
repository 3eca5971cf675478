package v1_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berth-project/berth/proto/errs"
	v1 "github.com/berth-project/berth/proto/shim/v1"
)

type handler func(method string, body json.RawMessage, fds []*os.File) (any, []*os.File, error)

func (h handler) Handle(_ context.Context, m string, b json.RawMessage, fds []*os.File) (any, []*os.File, error) {
	return h(m, b, fds)
}

func openFds(t *testing.T) int {
	t.Helper()
	ents, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(ents)
}

func pair(t *testing.T, h v1.Handler, events func(v1.Event)) (*v1.Client, *v1.Peer) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	peers := make(chan *v1.Peer, 1)
	var wg sync.WaitGroup
	wg.Go(func() {
		uc, err := l.AcceptUnix()
		if err != nil {
			return
		}
		conn, err := v1.NewConn(uc)
		if err != nil {
			t.Error(err)
			return
		}
		p := v1.NewPeer(conn, 4)
		peers <- p
		if err := p.Serve(context.Background(), h); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	if events == nil {
		events = func(v1.Event) {}
	}
	c, err := v1.Dial(context.Background(), path, events)
	if err != nil {
		t.Fatal(err)
	}
	wg.Go(func() { _ = c.Run() })
	t.Cleanup(func() { c.Close(); _ = l.Close(); wg.Wait() })
	return c, <-peers
}

// sentReply closes what it sent once it is on its way.
type sentReply struct {
	v1.HelloReply
	fd *os.File
}

// Sent implements the optional method of a reply.
func (r sentReply) Sent() { _ = r.fd.Close() }

func TestCallCarriesFdsBothWays(t *testing.T) {
	before := openFds(t)
	t.Run("calls", func(t *testing.T) {
		c, _ := pair(t, handler(func(_ string, _ json.RawMessage, fds []*os.File) (any, []*os.File, error) {
			r, w, err := os.Pipe()
			if err != nil {
				return nil, nil, err
			}
			_, err = io.WriteString(fds[0], "from shim")
			w.Close()      //nolint:errcheck // test
			fds[0].Close() //nolint:errcheck // test
			return sentReply{v1.HelloReply{Pid: 7}, r}, []*os.File{r}, err
		}), nil)
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		var reply v1.HelloReply
		out, err := c.Call(t.Context(), v1.MethodHello, v1.Hello{Version: 1}, []*os.File{w}, &reply)
		if err != nil || len(out) != 1 || reply.Pid != 7 {
			t.Fatalf("%+v, %d fds, %v", reply, len(out), err)
		}
		_ = w.Close()
		b, err := io.ReadAll(r)
		if err != nil || string(b) != "from shim" {
			t.Errorf("read %q, %v", b, err)
		}
		_, _ = r.Close(), out[0].Close()
	})
	if after := openFds(t); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

func TestErrorsKeepTheirClass(t *testing.T) {
	c, _ := pair(t, handler(func(m string, _ json.RawMessage, _ []*os.File) (any, []*os.File, error) {
		if m == "panic" {
			panic("boom")
		}
		return nil, nil, errs.NotFound.Errorf("container %q", "x")
	}), nil)
	_, err := c.Call(t.Context(), v1.MethodDelete, v1.ContainerRef{ID: "x"}, nil, nil)
	if !errors.Is(err, errs.NotFound) || err.Error() != `container "x"` {
		t.Errorf("got %v", err)
	}
	_, err = c.Call(t.Context(), "panic", nil, nil, nil)
	if !errors.Is(err, errs.Internal) || !strings.Contains(err.Error(), "boom") {
		t.Errorf("got %v", err)
	}
}

func TestLargeBodiesConcurrently(t *testing.T) {
	c, _ := pair(t, handler(func(_ string, b json.RawMessage, _ []*os.File) (any, []*os.File, error) {
		return b, nil, nil
	}), nil)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			want := strings.Repeat(string(rune('a'+i)), 1<<20)
			var got string
			if _, err := c.Call(t.Context(), "echo", want, nil, &got); err != nil || got != want {
				t.Errorf("call %d: %d bytes, %v", i, len(got), err)
			}
		})
	}
	wg.Wait()
	_, err := c.Call(t.Context(), "echo", strings.Repeat("x", v1.MaxBody), nil, nil)
	if !errors.Is(err, errs.ResourceExhausted) && !errors.Is(err, errs.Unavailable) {
		t.Errorf("oversized: %v", err)
	}
}

func TestEventsInOrderAndSlowPeerDropped(t *testing.T) {
	got := make(chan string)
	answer := handler(func(string, json.RawMessage, []*os.File) (any, []*os.File, error) { return nil, nil, nil })
	c, p := pair(t, answer, func(e v1.Event) { got <- string(e.Body) })
	p.Notify(v1.EventOOM, 1) // held until the first answer is out
	select {
	case e := <-got:
		t.Errorf("event %s before the answer to Hello", e)
	case <-time.After(20 * time.Millisecond):
	}
	if _, err := c.Call(t.Context(), v1.MethodHello, nil, nil, nil); err != nil {
		t.Fatal(err)
	}
	p.Notify(v1.EventOOM, 2)
	for _, want := range []string{"1", "2"} {
		if g := <-got; g != want {
			t.Errorf("event %s, want %s", g, want)
		}
	}
	for range 4096 { // nobody reads: the socket and the queue fill, the shim hangs up
		p.Notify(v1.EventOOM, strings.Repeat("x", 4096))
	}
	for {
		select {
		case <-got:
		case <-c.Done():
			return
		case <-time.After(5 * time.Second):
			t.Fatal("a peer that does not read was kept")
		}
	}
}

func TestCancelledCallLeaksNothing(t *testing.T) {
	release := make(chan struct{})
	c, _ := pair(t, handler(func(string, json.RawMessage, []*os.File) (any, []*os.File, error) {
		<-release
		return nil, nil, nil
	}), nil)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := c.Call(ctx, "slow", nil, nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	close(release)
}
