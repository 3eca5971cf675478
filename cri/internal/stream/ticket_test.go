package stream

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	goruntime "runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/proto/errs"
)

// serve runs a server without pods.
func serve(t *testing.T) *Server {
	t.Helper()
	s, err := New("127.0.0.1:0", empty(t))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s
}

func execURL(t *testing.T, s *Server) string {
	t.Helper()
	resp, err := s.GetExec(&cri.ExecRequest{ContainerId: "c", Cmd: []string{"x"}, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetUrl()
}

// TestStrangersCostNothing: what is asked for and was never promised is not remembered, and is not read to the end.
func TestStrangersCostNothing(t *testing.T) {
	s := serve(t)
	heap := func() uint64 {
		var m goruntime.MemStats
		goruntime.GC()
		goruntime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	for i := range 64 {
		w := httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/exec/"+strings.Repeat(string(rune('0'+i)), 1<<20), nil))
		if w.Code != http.StatusNotFound {
			t.Fatalf("a stranger's request: %d", w.Code)
		}
	}
	if after := heap(); after > before+16<<20 {
		t.Errorf("64 requests of 1 MB left %d MB", (after-before)>>20)
	}
	client := &http.Client{Timeout: 5 * time.Second}
	r, err := client.Get("http://" + s.Address() + "/exec/" + strings.Repeat("x", 2*headerLimit))
	if err != nil {
		t.Fatal(err)
	}
	_ = r.Body.Close()
	if r.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("a long request: %d", r.StatusCode)
	}
	client.CloseIdleConnections()
}

// TestOnce: a URL is good once, for what it was given for, for a minute.
func TestOnce(t *testing.T) {
	s := serve(t)
	ask := func(method, path string) int {
		w := httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequest(method, path, nil))
		return w.Code
	}
	u, err := url.Parse(execURL(t, s))
	if err != nil {
		t.Fatal(err)
	}
	if got := ask(http.MethodGet, strings.Replace(u.Path, "/exec/", "/attach/", 1)); got != http.StatusNotFound {
		t.Errorf("the token of an exec for an attach: %d", got)
	}
	if got := ask(http.MethodPut, u.Path); got != http.StatusMethodNotAllowed {
		t.Errorf("PUT: %d", got)
	}
	if got := ask(http.MethodGet, u.Path); got == http.StatusNotFound { // no upgrade: a bad request, but its own
		t.Errorf("the first use: %d", got)
	}
	if got := ask(http.MethodGet, u.Path); got != http.StatusNotFound {
		t.Errorf("the second use: %d", got)
	}
	pf, err := s.GetPortForward(&cri.PortForwardRequest{PodSandboxId: "p"})
	if err != nil || !strings.HasPrefix(pf.GetUrl(), "http://"+s.Address()+"/portforward/") {
		t.Errorf("%s, %v", pf.GetUrl(), err)
	}
	ts, now := tickets{pending: map[string]ticket{}}, time.Now()
	late, err := ts.issue("/exec/", ticket{exec: &cri.ExecRequest{}}, now)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := ts.spend(late, now.Add(ticketLife+time.Second)); ok {
		t.Error("it is good for longer than a minute")
	}
}

// TestLimit: URLs that nobody uses make room again when they are void.
func TestLimit(t *testing.T) {
	ts, now := tickets{pending: map[string]ticket{}}, time.Now()
	for range ticketLimit {
		if _, err := ts.issue("/exec/", ticket{exec: &cri.ExecRequest{}}, now); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := ts.issue("/exec/", ticket{exec: &cri.ExecRequest{}}, now); !errors.Is(err, errs.ResourceExhausted) {
		t.Errorf("one more: %v", err)
	}
	if _, err := ts.issue("/exec/", ticket{exec: &cri.ExecRequest{}}, now.Add(ticketLife+time.Second)); err != nil || len(ts.pending) != 1 {
		t.Errorf("after a minute: %v, %d pending", err, len(ts.pending))
	}
}

// TestManyStreams: streams that are used as soon as they are promised are never too many, in the newest protocol too.
func TestManyStreams(t *testing.T) {
	s := serve(t)
	for i := range 1100 {
		c, err := websocket.NewConfig("ws"+strings.TrimPrefix(execURL(t, s), "http"), "http://"+s.Address())
		if err != nil {
			t.Fatal(err)
		}
		c.Protocol = []string{protocolV5}
		ws, err := websocket.DialConfig(c)
		if err != nil {
			t.Fatalf("stream %d: %v", i, err)
		}
		_ = ws.Close()
	}
	if n := len(s.tickets.pending); n != 0 {
		t.Errorf("%d are remembered", n)
	}
}
