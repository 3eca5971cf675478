package network

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/berth-project/berth/proto/errs"
)

// plugins is a directory with the plugin of testdata in it, under two names.
var plugins string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		var err error
		if plugins, err = os.MkdirTemp("", "berth-network-test-"); err != nil {
			panic(err)
		}
		defer os.RemoveAll(plugins) //nolint:errcheck // test
		one := filepath.Join(plugins, "one")
		if out, err := exec.Command("go", "build", "-o", one, "./testdata/plugin").CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build the plugin: %v\n%s", err, out)
			return 1
		}
		for _, name := range []string{"two", pluginType} {
			if err := os.Link(one, filepath.Join(plugins, name)); err != nil {
				panic(err)
			}
		}
		return m.Run()
	}())
}

// lab is a network below a directory of its own.
type lab struct {
	*Network
	t         *testing.T
	dir, conf string
}

func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{t: t, dir: t.TempDir()}
	l.conf = filepath.Join(l.dir, "net.d")
	if err := os.Mkdir(l.conf, 0o755); err != nil {
		t.Fatal(err)
	}
	l.Network = New(Config{ConfDir: l.conf, BinDirs: []string{plugins}, CacheDir: filepath.Join(l.dir, "cache"), NetnsDir: filepath.Join(l.dir, "netns")},
		slog.New(slog.NewTextHandler(t.Output(), nil)))
	return l
}

// write puts a configuration of two plugins into the directory; more goes into the first one's.
func (l *lab) write(file, name string, more map[string]any) {
	l.t.Helper()
	first := map[string]any{
		"type": "one", "log": l.dir + "/log", "capabilities": map[string]bool{"portMappings": true, "bandwidth": true, "dns": true, "io.kubernetes.cri.pod-annotations": true},
	}
	for k, v := range more {
		first[k] = v
	}
	b, err := json.Marshal(map[string]any{
		"cniVersion": "1.1.0", "name": name, "plugins": []any{first, map[string]any{"type": "two", "log": l.dir + "/log"}},
	})
	if err != nil {
		l.t.Fatal(err)
	}
	l.put(file, string(b))
}

func (l *lab) put(file, text string) {
	l.t.Helper()
	if err := os.WriteFile(filepath.Join(l.conf, file), []byte(text), 0o644); err != nil {
		l.t.Fatal(err)
	}
}

// call is one line of the plugin's log.
type call struct {
	Verb, ID, Netns, Ifname, Args, Path string
	Config                              map[string]any
}

// calls empties the log.
func (l *lab) calls() []call {
	l.t.Helper()
	b, err := os.ReadFile(l.dir + "/log")
	if err != nil && !os.IsNotExist(err) {
		l.t.Fatal(err)
	}
	_ = os.Remove(l.dir + "/log")
	var all []call
	for line := range bytes.Lines(b) {
		var c call
		if err := json.Unmarshal(line, &c); err != nil {
			l.t.Fatal(err)
		}
		all = append(all, c)
	}
	return all
}

func verbs(cs []call) string {
	var all []string
	for _, c := range cs {
		all = append(all, c.Verb+" "+fmt.Sprint(c.Config["type"]))
	}
	return strings.Join(all, ", ")
}

func attachment() Attachment {
	return Attachment{PodID: "p1", Name: "web-0", Namespace: "default", UID: "u1", Netns: "/run/netns/berth-p1"}
}

func TestAttach(t *testing.T) {
	l := newLab(t)
	l.write("10-a.conflist", "net", nil)
	l.Reload()
	a := attachment()
	a.Ports = []Port{{HostPort: 8080, ContainerPort: 80, Protocol: "tcp", HostIP: "127.0.0.1"}}
	a.IngressRate, a.EgressRate = 1000, 2000
	a.DNS = types.DNS{Nameservers: []string{"10.0.0.10"}, Search: []string{"svc"}, Options: []string{"ndots:5"}}
	a.Annotations = map[string]string{"k": "v"}
	r, err := l.Attach(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	// the address of the host's end is not the pod's
	if r.Network != "net" || !slices.Equal(r.IPs, []string{"10.9.0.2", "fd00:9::2"}) || !json.Valid(r.Raw) {
		t.Errorf("%+v", r)
	}
	cs := l.calls()
	if verbs(cs) != "ADD one, ADD two" {
		t.Fatalf("%s", verbs(cs))
	}
	c := cs[0]
	want := "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=p1;K8S_POD_UID=u1"
	if c.ID != "p1" || c.Netns != a.Netns || c.Ifname != "eth0" || c.Args != want || c.Path != plugins {
		t.Errorf("%+v", c)
	}
	got, err := json.Marshal(c.Config["runtimeConfig"])
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"bandwidth":{"egressBurst":2147483647,"egressRate":2000,"ingressBurst":2147483647,"ingressRate":1000},` +
		`"dns":{"options":["ndots:5"],"searches":["svc"],"servers":["10.0.0.10"]},"io.kubernetes.cri.pod-annotations":{"k":"v"},` +
		`"portMappings":[{"containerPort":80,"hostIP":"127.0.0.1","hostPort":8080,"protocol":"tcp"}]}`; string(got) != want {
		t.Errorf("runtimeConfig %s", got)
	}
	// a plugin that asks for no capability gets none, but the result of the one before
	if cs[1].Config["runtimeConfig"] != nil || cs[1].Config["prevResult"] == nil {
		t.Errorf("the second plugin: %v", cs[1].Config)
	}
	a.Network = r.Network
	if err := l.Check(t.Context(), a); err != nil || verbs(l.calls()) != "CHECK one, CHECK two" {
		t.Errorf("check: %v", err)
	}
	if err := l.Detach(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	if cs = l.calls(); verbs(cs) != "DEL two, DEL one" || cs[0].Config["prevResult"] == nil {
		t.Errorf("%s: %v", verbs(cs), cs)
	}
}

// TestDetachByWhatAttached: a configuration that changed, or is gone, does not change how an attachment ends.
func TestDetachByWhatAttached(t *testing.T) {
	l := newLab(t)
	l.write("10-a.conflist", "old", map[string]any{"mark": "old"})
	l.Reload()
	a := attachment()
	r, err := l.Attach(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	a.Network = r.Network
	l.write("10-a.conflist", "new", map[string]any{"mark": "new"})
	l.Reload()
	l.calls()
	a.Netns = "" // as after a reboot
	if err := l.Detach(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	cs := l.calls()
	if verbs(cs) != "DEL two, DEL one" || cs[1].Config["mark"] != "old" || cs[1].Config["name"] != "old" || cs[0].Netns != "" {
		t.Errorf("%v", cs)
	}
	// its cache is gone now: to say that nothing was freed is all that is left
	if err := l.Detach(t.Context(), a); errs.Of(err) != errs.FailedPrecondition || !strings.Contains(err.Error(), `"old"`) {
		t.Errorf("%v", err)
	}
	// what was never attached needs nothing but a DEL to be sure
	a.Network = ""
	if err := l.Detach(t.Context(), a); err != nil {
		t.Error(err)
	}
}

// TestFailedAttach: DEL runs, with the configuration of the ADD, also if the directory has another one by then.
func TestFailedAttach(t *testing.T) {
	l := newLab(t)
	wait := filepath.Join(l.dir, "go")
	l.write("10-a.conflist", "net", map[string]any{"fail": []string{"ADD"}, "wait": wait, "mark": "mine"})
	l.Reload()
	done := make(chan error, 1)
	go func() {
		_, err := l.Attach(t.Context(), attachment())
		done <- err
	}()
	for {
		if _, err := os.Stat(l.dir + "/log"); err == nil {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	l.write("10-a.conflist", "other", nil)
	l.Reload()
	if err := os.WriteFile(wait, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err == nil || !strings.Contains(err.Error(), "ADD of net fails") {
		t.Errorf("%v", err)
	}
	cs := l.calls()
	if verbs(cs) != "ADD one, DEL two, DEL one" || cs[2].Config["mark"] != "mine" {
		t.Errorf("%s: %v", verbs(cs), cs)
	}
	// both fail: both are said
	l.write("10-a.conflist", "net", map[string]any{"fail": []string{"ADD", "DEL"}})
	l.Reload()
	if _, err := l.Attach(t.Context(), attachment()); err == nil || !strings.Contains(err.Error(), "ADD of net") || !strings.Contains(err.Error(), "DEL of net") {
		t.Errorf("%v", err)
	}
	l.calls()
	// a pod without an address is of no use
	l.write("10-a.conflist", "net", nil)
	b, err := os.ReadFile(filepath.Join(l.conf, "10-a.conflist"))
	if err != nil {
		t.Fatal(err)
	}
	l.put("10-a.conflist", strings.Replace(string(b), `"type":"two"`, `"type":"two","noIP":true`, 1))
	l.Reload()
	if _, err := l.Attach(t.Context(), attachment()); err == nil || !strings.Contains(err.Error(), "no address") || !strings.HasSuffix(verbs(l.calls()), "DEL one") {
		t.Errorf("%v", err)
	}
}

func TestGC(t *testing.T) {
	l := newLab(t)
	if err := l.GC(t.Context(), nil); err != nil {
		t.Errorf("without a configuration: %v", err)
	}
	l.write("10-a.conflist", "net", nil)
	l.Reload()
	for _, id := range []string{"keep", "drop"} {
		a := attachment()
		a.PodID = id
		if _, err := l.Attach(t.Context(), a); err != nil {
			t.Fatal(err)
		}
	}
	l.calls()
	if err := l.GC(t.Context(), []string{"keep"}); err != nil {
		t.Fatal(err)
	}
	cs := l.calls()
	for _, c := range cs {
		switch c.Verb {
		case "DEL":
			if c.ID != "drop" {
				t.Errorf("%s was detached", c.ID)
			}
		case "GC":
			if got, _ := json.Marshal(c.Config["cni.dev/valid-attachments"]); string(got) != `[{"containerID":"keep","ifname":"eth0"}]` {
				t.Errorf("valid: %s", got)
			}
		}
	}
	if got := verbs(cs); got != "DEL two, DEL one, GC one, GC two" {
		t.Errorf("%s", got)
	}
	// no pods is a list, not silence
	if err := l.GC(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	cs = l.calls()
	if got, _ := json.Marshal(cs[len(cs)-1].Config["cni.dev/valid-attachments"]); string(got) != `[]` {
		t.Errorf("valid: %s", got)
	}
}

func TestReady(t *testing.T) {
	l := newLab(t)
	if err := l.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "no CNI configuration in "+l.conf) {
		t.Errorf("an empty directory: %v", err)
	}
	if _, err := l.Attach(t.Context(), attachment()); errs.Of(err) != errs.Unavailable {
		t.Errorf("attach without a configuration: %v", err)
	}
	l.put("00-bad.conflist", "{")
	l.put("01-list.conf", `{"cniVersion":"1.0.0","name":"x","plugins":[]}`)
	l.put("02-empty.conflist", `{"cniVersion":"1.0.0","name":"x","plugins":[]}`)
	l.put("03-readme.txt", "not a configuration")
	l.Reload()
	err := l.Ready(t.Context())
	for _, file := range []string{"00-bad.conflist", "01-list.conf", "02-empty.conflist"} {
		if err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("%s is not named: %v", file, err)
		}
	}
	l.write("10-a.conflist", "net", nil)
	l.write("20-b.conflist", "second", nil)
	l.Reload()
	for range 2 { // the second answer is remembered
		if err := l.Ready(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if got := verbs(l.calls()); got != "STATUS one, STATUS two" {
		t.Errorf("%s", got)
	}
	if name, raw := l.Config(); name != "net" || !json.Valid(raw) {
		t.Errorf("%s", name)
	}
	l.write("10-a.conflist", "net", map[string]any{"fail": []string{"STATUS"}})
	l.Reload()
	if err := l.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "STATUS of net fails") {
		t.Errorf("%v", err)
	}
	// one plugin's own file
	l.put("05-single.conf", `{"cniVersion":"1.0.0","name":"single","type":"one","log":"`+l.dir+`/log"}`)
	l.Reload()
	if name, _ := l.Config(); name != "single" {
		t.Errorf("%s", name)
	}
}

// TestFollow: the directory is followed through changes, its removal and its return.
func TestFollow(t *testing.T) {
	l := newLab(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	await := func(what, want string) {
		t.Helper()
		for range 900 {
			if name, _ := l.Config(); name == want {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		name, _ := l.Config()
		t.Fatalf("%s: the network is %q, want %q", what, name, want)
	}
	time.Sleep(50 * time.Millisecond)
	l.write("10-a.conflist", "a", nil)
	await("a file comes", "a")
	l.write("05-b.conflist", "b", nil)
	await("an earlier one comes", "b")
	if err := os.Remove(filepath.Join(l.conf, "05-b.conflist")); err != nil {
		t.Fatal(err)
	}
	await("it goes", "a")
	if err := os.Rename(l.conf, l.conf+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(l.conf, 0o755); err != nil {
		t.Fatal(err)
	}
	l.write("10-c.conflist", "c", nil)
	await("the directory is replaced", "c")
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
