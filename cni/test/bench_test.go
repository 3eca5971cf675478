package test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// attacher is one way to attach and detach a pod.
type attacher struct {
	name     string
	add, del func(id string, s *ns) error
}

func ours(n *node, name, extra string) attacher {
	conf := n.conf("1.0.0", extra)
	return attacher{
		name,
		func(id string, s *ns) error {
			_, err := n.run(call{verb: "ADD", id: id, netns: s.Path(), conf: conf})
			return err
		},
		func(id string, s *ns) error {
			_, err := n.run(call{verb: "DEL", id: id, netns: s.Path(), conf: conf})
			return err
		},
	}
}

// upstream is bridge + host-local, and portmap if ports is not empty, as libcni would run them.
func upstream(n *node, name, dir, data, ports string) attacher {
	bridge := fmt.Sprintf(`{"cniVersion":"1.0.0","name":"up","type":"bridge","bridge":"cni0","isGateway":true,"ipMasq":true,
		"ipam":{"type":"host-local","dataDir":%q,"ranges":[[{"subnet":"10.77.0.0/24"}]],"routes":[{"dst":"0.0.0.0/0"}]}}`, data)
	portmap := func(prev []byte) string {
		return fmt.Sprintf(`{"cniVersion":"1.0.0","name":"up","type":"portmap","snat":true,"runtimeConfig":{"portMappings":[%s]},"prevResult":%s}`, ports, prev)
	}
	prev := map[string][]byte{}
	run := func(plugin, verb, id string, s *ns, conf string) ([]byte, error) {
		return n.run(call{verb: verb, id: id, netns: s.Path(), conf: conf, bin: filepath.Join(dir, plugin), env: []string{"CNI_PATH=" + dir}})
	}
	return attacher{
		name,
		func(id string, s *ns) error {
			out, err := run("bridge", "ADD", id, s, bridge)
			if err == nil && ports != "" {
				prev[id] = out
				_, err = run("portmap", "ADD", id, s, portmap(out))
			}
			return err
		},
		func(id string, s *ns) error {
			if ports != "" {
				if _, err := run("portmap", "DEL", id, s, portmap(prev[id])); err != nil {
					return err
				}
			}
			_, err := run("bridge", "DEL", id, s, bridge)
			return err
		},
	}
}

// TestCompare measures ADD and DEL, executed as a runtime does, against the upstream plugins in the same run. Set
// BERTH_TEST_UPSTREAM_CNI to the folder with bridge, host-local and portmap.
func TestCompare(t *testing.T) {
	dir := os.Getenv("BERTH_TEST_UPSTREAM_CNI")
	if dir == "" {
		t.Skip("BERTH_TEST_UPSTREAM_CNI is not set: nothing to compare with")
	}
	const one = `{"hostPort":8080,"containerPort":80,"protocol":"tcp"}`
	n := newNode(t)
	for _, a := range []attacher{
		ours(n, "berth", `,"ranges":[{"subnet":"10.99.0.0/24"}]`),
		upstream(n, "bridge+host-local", dir, t.TempDir(), ""),
		ours(n, "berth, host port", `,"ranges":[{"subnet":"10.99.0.0/24"}],"runtimeConfig":{"portMappings":[`+one+`]}`),
		upstream(n, "bridge+host-local+portmap", dir, t.TempDir(), one),
		ours(n, "berth, dual stack", dual),
	} {
		var adds, dels []time.Duration
		for i := range 15 {
			s, id := newNS(t), fmt.Sprint("c", i)
			t0 := time.Now()
			if err := a.add(id, s); err != nil {
				t.Fatalf("%s: %v", a.name, err)
			}
			t1 := time.Now()
			if err := a.del(id, s); err != nil {
				t.Fatalf("%s: %v", a.name, err)
			}
			adds, dels = append(adds, t1.Sub(t0)), append(dels, time.Since(t1))
		}
		slices.Sort(adds)
		slices.Sort(dels)
		b, _ := json.Marshal(map[string]any{"chain": a.name, "add_ms_p50": ms(adds[7]), "add_ms_min": ms(adds[0]), "del_ms_p50": ms(dels[7]), "del_ms_min": ms(dels[0])})
		t.Logf("%s", b)
	}
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
