package kubenode

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berth-project/berth/proto/errs"
)

// server is an API server with one node, whose watch brings what the test sends. It believes one token.
type server struct {
	t     *testing.T
	token string

	mu      sync.Mutex
	labels  map[string]string
	owned   string
	gets    int
	refuse  int // code of each answer, 0: none
	patches []string
	events  chan string
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	refuse, token := s.refuse, s.token
	s.mu.Unlock()
	switch {
	case r.Header.Get("Authorization") != "Bearer "+token:
		refuse = http.StatusUnauthorized
	case !strings.Contains(r.Header.Get("Accept"), "as=PartialObjectMetadata"):
		s.t.Errorf("the whole object is asked for: %s", r.Header.Get("Accept"))
	}
	if refuse != 0 {
		w.WriteHeader(refuse)
		fmt.Fprintf(w, `{"kind":"Status","message":"no, %d","code":%d}`, refuse, refuse)
		return
	}
	switch {
	case r.Method == http.MethodPatch:
		b, err := io.ReadAll(r.Body)
		if err != nil {
			s.t.Error(err)
		}
		s.mu.Lock()
		s.patches = append(s.patches, string(b))
		s.mu.Unlock()
		fmt.Fprint(w, s.object())
	case r.URL.Path == "/api/v1/nodes/here":
		s.mu.Lock()
		s.gets++
		s.mu.Unlock()
		fmt.Fprint(w, s.object())
	case r.URL.Query().Get("fieldSelector") == "metadata.name=here" && r.URL.Query().Get("resourceVersion") == "7":
		w.(http.Flusher).Flush()
		for {
			select {
			case e, ok := <-s.events:
				if !ok || e == "" {
					return // as the server ends a watch
				}
				fmt.Fprintln(w, e)
				w.(http.Flusher).Flush()
				if !strings.Contains(e, "MODIFIED") {
					return
				}
			case <-r.Context().Done():
				return
			}
		}
	default:
		s.t.Errorf("unexpected: %s %s", r.Method, r.URL)
	}
}

func (s *server) object() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": s.labels, "annotations": map[string]string{Owned: s.owned}, "resourceVersion": "7"}})
	if err != nil {
		s.t.Error(err)
	}
	return string(b)
}

func (s *server) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

// start serves over TLS and writes a kubeconfig whose token is in a file beside it.
func start(t *testing.T) (*server, string) {
	t.Helper()
	s := &server{t: t, token: "first", labels: map[string]string{"a": "1"}, events: make(chan string)}
	srv := httptest.NewTLSServer(s)
	t.Cleanup(srv.Close)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	return s, write(t, fmt.Sprintf("clusters: [{name: c, cluster: {server: %q, certificate-authority-data: %s}}]\nusers: [{name: u, user: {tokenFile: token}}]\n",
		srv.URL, base64.StdEncoding.EncodeToString(ca)))
}

func write(t *testing.T, text string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range map[string]string{"config": text + "contexts: [{name: x, context: {cluster: c, user: u}}]\ncurrent-context: x\n", "token": "first\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "config")
}

// TestWatch: each change is seen, whether the watch brings it or, after its end, the object itself; a token that is
// renewed is used; a server that refuses is reported once, and asked again.
func TestWatch(t *testing.T) {
	s, config := start(t)
	c, err := Open(config, "here")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	seen, lost, done := make(chan Node), make(chan error, 10), make(chan error, 1)
	go func() {
		done <- c.Watch(ctx, func(n Node) { seen <- n }, func(err error) { lost <- err })
	}()
	next := func(want string) {
		t.Helper()
		select {
		case n := <-seen:
			if n.Labels["a"] != want {
				t.Fatalf("seen %v, want %s", n.Labels, want)
			}
		case <-ctx.Done():
			t.Fatalf("%s is not seen", want)
		}
	}
	next("1")
	send := func(event string) { // to the handler of a watch, once there is one
		t.Helper()
		select {
		case s.events <- event:
		case <-ctx.Done():
			t.Fatalf("nobody watches for %q", event)
		}
	}
	send(`{"type":"MODIFIED","object":{"metadata":{"labels":{"a":"2"}}}}`)
	next("2")
	s.set(func() { s.labels = map[string]string{"a": "3"} })
	send(``) // its end
	next("3")
	send(`{"type":"MODIFIED","object":{"metadata":{"labels":{"a":"3"}}}}`)
	next("3") // so the watch is under way with the old token
	if err := os.WriteFile(filepath.Join(filepath.Dir(config), "token"), []byte("second"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.set(func() { s.token, s.labels = "second", map[string]string{"a": "4"} })
	send(`{"type":"ERROR","object":{"code":410,"message":"too old"}}`)
	next("4")
	select {
	case err := <-lost:
		t.Fatalf("a watch that is too old is no news: %v", err)
	default:
	}
	send(`{"type":"MODIFIED","object":{"metadata":{"labels":{"a":"4"}}}}`)
	next("4")
	s.set(func() { s.refuse = http.StatusForbidden })
	send(`{"type":"DELETED","object":{}}`)
	if err := <-lost; errs.Of(err) != errs.NotFound {
		t.Error(err)
	}
	time.Sleep(3 * firstPause)
	s.set(func() { s.refuse, s.labels = 0, map[string]string{"a": "5"} })
	next("5")
	if len(lost) != 0 {
		t.Errorf("said again: %v", <-lost)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestRefusals(t *testing.T) {
	s, config := start(t)
	c, err := Open(config, "here")
	if err != nil {
		t.Fatal(err)
	}
	for code, want := range map[int]errs.Class{403: errs.PermissionDenied, 404: errs.NotFound, 401: errs.Unauthenticated, 500: errs.Unavailable, 422: errs.InvalidArgument} {
		s.set(func() { s.refuse = code })
		if _, err := c.Get(t.Context()); errs.Of(err) != want || !strings.Contains(err.Error(), fmt.Sprintf("no, %d", code)) {
			t.Errorf("%d: %v", code, err)
		}
	}
	for text, want := range map[string]string{
		"clusters: [{name: c, cluster: {server: 'https://x'}}]\nusers: [{name: u, user: {exec: {command: aws}}}]\n":     "by a program",
		"clusters: [{name: c, cluster: {server: 'http://x'}}]\nusers: [{name: u, user: {}}]\n":                          "want https",
		"clusters: [{name: c, cluster: {server: 'https://x', insecure-skip-tls-verify: true}}]\nusers: [{name: u}]\n":   "not taken",
		"clusters: [{name: d, cluster: {server: 'https://x'}}]\nusers: [{name: u}]\n":                                   "no cluster",
		"clusters: [{name: c, cluster: {server: 'https://x', certificate-authority-data: eA==}}]\nusers: [{name: u}]\n": "no certificate",
		"clusters: 3\n": "cannot unmarshal",
	} {
		if _, err := Open(write(t, text), "here"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	if _, err := Open(config, ""); err == nil {
		t.Error("a node without a name")
	}
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	if _, err := Open("", "here"); errs.Of(err) != errs.FailedPrecondition {
		t.Error(err)
	}
}

// TestStranger: a server whose certificate is not of the authority in the kubeconfig never sees the token.
func TestStranger(t *testing.T) {
	srv := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("it was asked") }))
	defer srv.Close()
	c, err := Open(write(t, fmt.Sprintf("clusters: [{name: c, cluster: {server: %q}}]\nusers: [{name: u, user: {token: secret}}]\n", srv.URL)), "here")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Get(t.Context()); errs.Of(err) != errs.Unavailable || !strings.Contains(err.Error(), "certificate") {
		t.Error(err)
	}
}

func TestCompile(t *testing.T) {
	for _, c := range []struct {
		name             string
		have             map[string]string
		owned            string
		want             map[string]string
		labels, annotate string
	}{
		{"first", map[string]string{"theirs": "x"}, "", map[string]string{"g": "1"}, `{"g":"1"}`, `{"gpu.berth-project/labels":"g"}`},
		{"nothing to do", map[string]string{"g": "1", "theirs": "x"}, "g", map[string]string{"g": "1"}, "", ""},
		{"changed", map[string]string{"g": "1"}, "g", map[string]string{"g": "2"}, `{"g":"2"}`, `{"gpu.berth-project/labels":"g"}`},
		{"no longer true", map[string]string{"g": "1", "h": "1"}, "g,h", map[string]string{"g": "1"}, `{"h":null}`, `{"gpu.berth-project/labels":"g"}`},
		{"taken away by hand", map[string]string{}, "g", map[string]string{"g": "1"}, `{"g":"1"}`, `{"gpu.berth-project/labels":"g"}`},
		{"one of theirs is not in our list", map[string]string{"g": "1", "theirs": "x"}, "g", nil, `{"g":null}`, `{"gpu.berth-project/labels":null}`},
		{"a list that names what is not there", nil, "gone", nil, `{}`, `{"gpu.berth-project/labels":null}`},
	} {
		got, err := Compile(Node{Labels: c.have, Annotations: map[string]string{Owned: c.owned}}, c.want)
		want := ""
		if c.annotate != "" {
			want = fmt.Sprintf(`{"metadata":{"annotations":%s,"labels":%s}}`, c.annotate, c.labels)
		}
		if err != nil || string(got) != want {
			t.Errorf("%s: %s %v\nwant %s", c.name, got, err, want)
		}
	}
}

func TestPatch(t *testing.T) {
	s, config := start(t)
	c, err := Open(config, "here")
	if err != nil {
		t.Fatal(err)
	}
	if n, err := c.Patch(t.Context(), []byte(`{"metadata":{}}`)); err != nil || n.Labels["a"] != "1" || len(s.patches) != 1 || s.patches[0] != `{"metadata":{}}` {
		t.Error(err, s.patches)
	}
	s.set(func() { s.refuse = 403 })
	if _, err := c.Patch(t.Context(), []byte(`{}`)); errs.Of(err) != errs.PermissionDenied {
		t.Error(err)
	}
}
