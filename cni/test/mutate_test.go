package test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
)

// nasty are values that somebody may write, or send, where something else was meant.
func nasty() []any {
	return []any{
		nil, true, -1, 0, 70000, 1e99, "", " ", "../../etc/passwd", "a b;c", "10.0.0.0/33", "fd00::/200", "::ffff:10.0.0.1/120",
		strings.Repeat("x", 300), "nul\x00", "ip\nroute",
		[]any{},
		[]any{nil},
		map[string]any{},
		map[string]any{"x": map[string]any{}},
		"0.0.0.0/0", "255.255.255.255", "02:00:00:00:00:00:01", 18446744073709551615.0,
	}
}

// mutate replaces one value somewhere in a configuration, or a key.
func mutate(rng *rand.Rand, v any) any {
	switch x := v.(type) {
	case map[string]any:
		if len(x) == 0 || rng.IntN(5) == 0 {
			break
		}
		keys := make([]string, 0, len(x))
		for k := range x {
			keys = append(keys, k)
		}
		k := keys[rng.IntN(len(keys))]
		out := map[string]any{}
		for o, val := range x {
			out[o] = val
		}
		if rng.IntN(8) == 0 {
			delete(out, k)
			return out
		}
		out[k] = mutate(rng, x[k])
		return out
	case []any:
		if len(x) == 0 || rng.IntN(5) == 0 {
			break
		}
		out := append([]any(nil), x...)
		i := rng.IntN(len(out))
		out[i] = mutate(rng, out[i])
		return out
	}
	all := nasty()
	return all[rng.IntN(len(all))]
}

// TestMutatedInput executes ADD with thousands of configurations and arguments of which one thing is wrong, and lets DEL
// follow with the good one: what fails has a code for bad input and leaves nothing, and what succeeds is taken off.
func TestMutatedInput(t *testing.T) {
	rounds := 60
	if torture() {
		rounds = 2000
	}
	n := newNode(t)
	leases := t.TempDir()
	for _, c := range []struct{ plugin, conf string }{
		{"berth", n.conf("1.1.0", dual+`,"mtu":1400,"ipMasq":true,"masqueradeExclude":["10.0.0.0/8"],"cooldownSeconds":5,
			"runtimeConfig":{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"udp","hostIP":"192.0.2.1"}],"ips":["10.99.0.9"],"mac":"02:00:00:00:00:09",
			"bandwidth":{"ingressRate":8000000,"ingressBurst":800000,"egressRate":8000000,"egressBurst":80000},"dns":{"servers":["10.0.0.1"]}}`)},
		{"bridge", fmt.Sprintf(`{"cniVersion":"1.0.0","name":"m","type":"bridge","bridge":"cni7","isGateway":true,"ipMasq":true,"mtu":1400,"hairpinMode":true,"stateDir":%q,
			"ipam":{"type":"host-local","dataDir":%q,"ranges":[[{"subnet":"10.66.0.0/24","rangeStart":"10.66.0.5","gateway":"10.66.0.1"}]],"routes":[{"dst":"0.0.0.0/0","mtu":1300}]},
			"args":{"cni":{"mac":"02:00:00:00:00:07"}},"runtimeConfig":{"ips":["10.66.0.7"]}}`, n.state, leases)},
		{"ptp", fmt.Sprintf(`{"cniVersion":"0.4.0","name":"p","type":"ptp","ipMasq":true,"stateDir":%q,"ipam":{"type":"static","addresses":[{"address":"10.67.0.5/24","gateway":"10.67.0.1"}],"routes":[{"dst":"0.0.0.0/0"}]}}`, n.state)},
	} {
		t.Run(c.plugin, func(t *testing.T) { n.mutations(t, c.plugin, c.conf, rounds) })
	}
}

func (n *node) mutations(t *testing.T, plugin, conf string, rounds int) {
	t.Helper()
	rng := rand.New(rand.NewPCG(3, uint64(len(conf))))
	bin := n.as(t, plugin)
	var good any
	if err := json.Unmarshal([]byte(conf), &good); err != nil {
		t.Fatal(err)
	}
	s, refused := newNS(t), 0
	for i := range rounds {
		b, err := json.Marshal(mutate(rng, good))
		if err != nil {
			continue // 1e99 and such always encode
		}
		args := ""
		if rng.IntN(4) == 0 {
			args = []string{"IP=1.2.3", "MAC=zz", ";;;", "=", "IP", "K8S_POD_NAME=\x01"}[rng.IntN(6)]
		}
		if !strings.Contains(string(b), `"stateDir":"`+n.state+`"`) || strings.Contains(conf, "dataDir") && !strings.Contains(string(b), `"dataDir":"`+os.TempDir()) {
			continue // state of the machine's own is not ours to try
		}
		id := fmt.Sprintf("m%d", i)
		_, err = n.run(call{verb: "ADD", id: id, netns: s.Path(), conf: string(b), args: args, bin: bin})
		if err != nil {
			refused++
			if c := code(err); c < 1 || c > 11 && c != 100 && c != 999 || c == 999 && !known(err) {
				t.Errorf("%s %s: %v", args, b, err)
			}
			if left := n.census(t); strings.Contains(left, "bth") {
				t.Fatalf("refused, and left\n%s\nby %s", left, b)
			}
		}
		for _, del := range []string{string(b), conf} {
			if _, derr := n.run(call{verb: "DEL", id: id, netns: s.Path(), conf: del, bin: bin}); derr != nil && del == conf {
				t.Fatalf("DEL after %s: %v", b, derr)
			}
		}
		if out := s.sh(t, "ip -o link"); strings.Contains(out, "eth0") {
			t.Fatalf("left in the pod after %s (%v):\n%s", b, err, out)
		}
	}
	t.Logf("%d of %d were refused", refused, rounds)
}

// known are failures of the kernel's that a configuration can ask for and no check foresees.
func known(err error) bool {
	for _, s := range []string{"invalid argument", "numerical result out of range", "network is unreachable", "no route to host", "file exists"} {
		if strings.Contains(err.Error(), s) {
			return true
		}
	}
	return false
}
