package network

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	v1 "github.com/berth-project/berth/proto/cniagent/v1"
)

// fakeAgent answers with what serve makes of each request; a nil reply hangs up.
func fakeAgent(t *testing.T, serve func(v1.Request) *v1.Reply) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "cni.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.AcceptUnix()
			if err != nil {
				return
			}
			var req v1.Request
			if err := v1.Read(c, &req); err != nil && !errors.Is(err, io.EOF) {
				t.Error(err)
			}
			if reply := serve(req); reply != nil {
				if err := v1.Write(c, reply); err != nil {
					t.Error(err)
				}
			}
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return path
}

const result = `{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","sandbox":"/x"}],"ips":[{"address":"10.9.0.7/32","interface":0}]}`

// TestAgentInsteadOfPlugin: a plugin whose configuration names an agent is not executed, but for the others of its list.
func TestAgentInsteadOfPlugin(t *testing.T) {
	l := newLab(t)
	var seen []string
	socket := fakeAgent(t, func(r v1.Request) *v1.Reply {
		var conf map[string]any
		if err := json.Unmarshal(r.Stdin, &conf); err != nil || conf["name"] != "podnet" || r.Version != v1.Version {
			t.Errorf("%s, %v", r.Stdin, err)
		}
		for _, kv := range r.Env {
			if !strings.HasPrefix(kv, "CNI_") {
				t.Errorf("the agent is told %s", kv)
			}
			if verb, ok := strings.CutPrefix(kv, "CNI_COMMAND="); ok {
				seen = append(seen, verb)
			}
		}
		return &v1.Reply{Stdout: []byte(result), Stderr: []byte("a remark")}
	})
	l.write("10.conflist", "podnet", map[string]any{"type": pluginType, "agentSocket": socket})
	l.Reload()
	a := Attachment{PodID: "p1", Name: "web", Namespace: "ns", Netns: "/proc/self/ns/net", Network: "podnet"}
	if _, err := l.Attach(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	if err := l.Detach(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(seen, " "); got != "ADD DEL" {
		t.Errorf("the agent saw %s", got)
	}
	if got := verbs(l.calls()); got != "ADD two, DEL two" {
		t.Errorf("executed: %s", got)
	}
}

// TestAgentsFaults: what a plugin refuses is refused; whoever does not serve is replaced by executing the plugin, after
// what it may have begun is undone.
func TestAgentsFaults(t *testing.T) {
	dead := filepath.Join(t.TempDir(), "dead.sock")
	if err := os.WriteFile(dead, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		socket string
		want   string // executed
		err    string
	}{
		"nobody there":   {socket: filepath.Join(t.TempDir(), "none.sock"), want: "ADD berth, ADD two"},
		"nobody listens": {socket: dead, want: "ADD berth, ADD two"},
		"refuses":        {socket: fakeAgent(t, func(v1.Request) *v1.Reply { return &v1.Reply{Refused: "version"} }), want: "ADD berth, ADD two"},
		"dies":           {socket: fakeAgent(t, func(v1.Request) *v1.Reply { return nil }), want: "DEL berth, ADD berth, ADD two"},
		"a plugin's error": {
			socket: fakeAgent(t, func(r v1.Request) *v1.Reply {
				if strings.Contains(strings.Join(r.Env, " "), "CNI_COMMAND=DEL") {
					return &v1.Reply{}
				}
				return &v1.Reply{Exit: 1, Stdout: []byte(`{"cniVersion":"1.1.0","code":11,"msg":"the range is full"}`)}
			}), want: "DEL two", err: "the range is full",
		},
		"nonsense":        {socket: fakeAgent(t, func(v1.Request) *v1.Reply { return &v1.Reply{Exit: 1, Stdout: []byte("panic: ")} }), want: "DEL two", err: `"panic: "`},
		"a relative path": {socket: "cni.sock", want: "ADD berth, ADD two"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			l.write("10.conflist", "podnet", map[string]any{"type": pluginType, "agentSocket": c.socket})
			l.Reload()
			_, err := l.Attach(t.Context(), Attachment{PodID: "p1", Name: "web", Namespace: "ns", Netns: "/proc/self/ns/net"})
			if (err != nil) != (c.err != "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("%v, want %q", err, c.err)
			}
			var plugin *types.Error
			if strings.Contains(c.err, "full") && (!errors.As(err, &plugin) || plugin.Code != 11) {
				t.Errorf("the code is lost: %+v", err)
			}
			if got := verbs(l.calls()); got != c.want {
				t.Errorf("executed: %s, want %s", got, c.want)
			}
		})
	}
}
