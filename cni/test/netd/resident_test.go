package netd

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/cni/test/netlab"
	v1 "github.com/berth-project/berth/proto/cniagent/v1"
)

// verb asks the agent for one of the plugin's verbs, as berth-cri does.
func (n *node) verb(ctx context.Context, verb, id, netns, conf string) (v1.Reply, error) {
	env := []string{"CNI_COMMAND=" + verb, "CNI_CONTAINERID=" + id, "CNI_NETNS=" + netns, "CNI_IFNAME=eth0"}
	return n.request(ctx, v1.Request{Version: v1.Version, Env: env, Stdin: []byte(conf)})
}

// request puts any request.
func (n *node) request(ctx context.Context, req v1.Request) (v1.Reply, error) {
	var r v1.Reply
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", n.file("run/cni.sock"))
	if err != nil {
		return r, err
	}
	defer c.Close() //nolint:errcheck // a test's
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	if err := v1.Write(c, req); err != nil {
		return r, err
	}
	if err := v1.Read(c, &r); err != nil {
		return r, err
	}
	if r.Exit != 0 || r.Refused != "" {
		return r, fmt.Errorf("%v: %s%s", req.Env, r.Refused, r.Stdout)
	}
	return r, nil
}

// podConf is it as text; it names the agent's socket.
func (n *node) podConf() string {
	n.lab.t.Helper()
	conf := n.plugin()
	if s, ok := conf["agentSocket"].(string); !ok || s != n.file("run/cni.sock") {
		n.lab.t.Fatalf("agentSocket %v", conf["agentSocket"])
	}
	out, err := json.Marshal(conf)
	if err != nil {
		n.lab.t.Fatal(err)
	}
	return string(out)
}

// podLinks counts the host ends of pods.
func (n *node) podLinks() int { return strings.Count(n.Run("ip -o link show type veth"), ": bth") }

// descriptors counts the agent's.
func (n *node) descriptors() int {
	n.lab.t.Helper()
	all, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", n.agent.PID()))
	if err != nil {
		n.lab.t.Fatal(err)
	}
	return len(all)
}

// holdLock takes the plugin's lock; the function gives it back.
func (n *node) holdLock() func() {
	n.lab.t.Helper()
	f, err := os.Open(n.file("cni/lock"))
	if err == nil {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		n.lab.t.Fatal(err)
	}
	return func() { _ = f.Close() }
}

// TestResident: the agent does the plugin's work for who asks, beside executions of the plugin; what it is asked by two at
// once, by who has gone, or when it is killed, leaves nothing.
func TestResident(t *testing.T) {
	t.Parallel()
	l := newLab(t, "mode: vxlan", true, true, 2, false)
	n1, ctx := l.nodes[0], t.Context()
	conf := n1.podConf()
	far := l.nodes[1].pod("")
	witness := n1.pod("") // executed
	idle := n1.descriptors()
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			id, ns := fmt.Sprintf("r%d", i), netlab.Bare(t)
			if _, err := n1.verb(ctx, "ADD", id, ns.Path(), conf); err != nil {
				t.Error(err)
				return
			}
			within(t, id, func() bool {
				return reachesNow(ns, far.v4, 100) && reachesNow(ns, far.v6, 100) && reachesNow(ns, witness.v4, 100)
			})
			if _, err := n1.verb(ctx, "CHECK", id, ns.Path(), conf); err != nil {
				t.Error(err)
			}
			if _, err := n1.verb(ctx, "ADD", id, ns.Path(), conf); err == nil || !strings.Contains(err.Error(), `"code":100`) {
				t.Errorf("added twice: %v", err)
			}
			if _, err := n1.verb(ctx, "DEL", id, ns.Path(), conf); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	within(t, "no link is left", func() bool { return n1.podLinks() == 1 })
	within(t, "no descriptor is left", func() bool { return n1.descriptors() <= idle })

	// Other types, and other versions, are refused: the runtime executes the plugin.
	if r, err := n1.verb(ctx, "ADD", "x", "/proc/self/ns/net", `{"cniVersion":"1.0.0","name":"x","type":"bridge"}`); err == nil || r.Refused == "" {
		t.Errorf("%+v, %v", r, err)
	}
	for _, req := range []v1.Request{
		{Version: v1.Version + 1, Env: []string{"CNI_COMMAND=VERSION"}},
		{Version: v1.Version, Env: []string{"CNI_COMMAND=ADD", "CNI_NETNS=/proc/self/ns/net"}, Netns: &v1.File{Dev: 1, Ino: 1}},
		{Version: v1.Version, Env: []string{"CNI_COMMAND=ADD", "CNI_NETNS=/none"}, Netns: &v1.File{Dev: 1, Ino: 1}},
	} {
		if r, err := n1.request(ctx, req); err == nil || r.Refused == "" {
			t.Errorf("%+v: %+v, %v", req, r, err)
		}
	}
	// A runtime that goes away before its turn: nothing is begun.
	held := n1.holdLock()
	gone, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	ns := netlab.Bare(t)
	if _, err := n1.verb(gone, "ADD", "gone", ns.Path(), conf); err == nil {
		t.Error("answered while the lock was held")
	}
	cancel()
	held()
	time.Sleep(300 * time.Millisecond)
	if n := n1.podLinks(); n != 1 {
		t.Errorf("%d links of pods, want the witness's", n)
	}
	// The agent is killed meanwhile: an execution repairs.
	for i := range 10 {
		id, ns := fmt.Sprintf("k%d", i), netlab.Bare(t)
		kill := time.AfterFunc(time.Duration(i)*time.Millisecond/2, n1.agent.Kill)
		_, err := n1.verb(ctx, "ADD", id, ns.Path(), conf)
		kill.Stop()
		n1.agent.Kill()
		t.Logf("killed after %d/2 ms: %v", i, err)
		n1.execute("DEL", id, ns.Path(), conf)
		if n := n1.podLinks(); n != 1 {
			t.Errorf("%s: %d links of pods, want the witness's", id, n)
		}
		n1.start()
		within(t, "the agent", func() bool { s, err := n1.status(); return err == nil && s.Ready })
	}
	mustReach(t, "the witness", witness.NS, far.v4, 100)
}
