package test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// torture says whether to run the counts that take minutes (make torture-cni).
func torture() bool { return os.Getenv("BERTH_TORTURE") != "" }

// kind is a network configuration that is tortured.
type kind struct {
	name string
	// plugin is the name that the binary is executed under.
	plugin string
	conf   func(n *node, more string) string
}

// kinds are type berth and a drop-in with IPAM, each on one /24.
func kinds(t *testing.T, n *node) []kind {
	t.Helper()
	leases := t.TempDir()
	return []kind{
		{"berth", "berth", func(n *node, more string) string {
			return n.conf("1.1.0", `,"ranges":[{"subnet":"10.99.0.0/24"}]`+more)
		}},
		{"bridge", "bridge", func(n *node, more string) string {
			return fmt.Sprintf(`{"cniVersion":"1.1.0","name":"brnet","type":"bridge","bridge":"cni0","isDefaultGateway":true,"ipMasq":true,"stateDir":%q,
				"ipam":{"type":"host-local","subnet":"10.77.0.0/24","dataDir":%q}%s}`, n.state, leases, more)
		}},
	}
}

// as is the binary under a plugin's name.
func (n *node) as(t *testing.T, plugin string) string {
	t.Helper()
	path := filepath.Join(filepath.Dir(n.bin), plugin)
	if err := os.Symlink(n.bin, path); err != nil && !errors.Is(err, os.ErrExist) {
		t.Fatal(err)
	}
	return path
}

// mortal executes the plugin and kills it from outside after a while, if after is not zero.
func (n *node) mortal(bin, verb, id, netns, conf string, after time.Duration) ([]byte, error) {
	cmd := exec.Command(bin)
	cmd.Env = []string{"CNI_COMMAND=" + verb, "CNI_CONTAINERID=" + id, "CNI_IFNAME=eth0", "CNI_NETNS=" + netns, "PATH=" + os.Getenv("PATH")}
	cmd.Stdin = strings.NewReader(conf)
	var stdout bytes.Buffer
	cmd.Stdout, cmd.WaitDelay = &stdout, time.Second
	err := n.Do(func() error {
		if err := cmd.Start(); err != nil {
			return err
		}
		if after > 0 {
			timer := time.AfterFunc(after, func() { _ = cmd.Process.Signal(syscall.SIGKILL) })
			defer timer.Stop()
		}
		return cmd.Wait()
	})
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if !exit.Exited() {
			return nil, errKilled
		}
		f := &fault{}
		if jerr := json.Unmarshal(stdout.Bytes(), f); jerr == nil {
			return nil, f
		}
	}
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil
	}
	return stdout.Bytes(), err
}

// TestTortureStorm is 64 processes at a time, of which one in twenty is killed at any moment, on a /24: no address has
// two owners, and nothing is left after GC.
func TestTortureStorm(t *testing.T) {
	workers, rounds := 16, 10
	if torture() {
		workers, rounds = 64, 157 // 10,048 ADDs and as many DELs
	}
	n := newNode(t)
	for _, k := range kinds(t, n) {
		t.Run(k.name, func(t *testing.T) {
			s := &storm{node: n, t: t, bin: n.as(t, k.plugin), conf: k.conf(n, ""), owner: map[string]string{}}
			var wg sync.WaitGroup
			for w := range workers {
				ns, rng := newNS(t), rand.New(rand.NewPCG(11, uint64(w)))
				wg.Go(func() { s.work(ns, rng, w, rounds) })
			}
			wg.Wait()
			gc := k.conf(n, `,"cni.dev/valid-attachments":[]`)
			if _, err := n.run(call{verb: "GC", conf: gc, bin: s.bin}); err != nil {
				t.Errorf("GC: %v", err)
			}
			eventually(t, func() bool { return n.census(t) == "" && !strings.Contains(n.sh(t, "ip -o link"), "veth") })
			leases, _ := filepath.Glob(filepath.Join(leaseDir(s.conf), "10.*"))
			if len(leases) > 0 {
				t.Errorf("leases: %v", leases)
			}
			t.Logf("%d ADDs, %d DELs, %d processes killed, %d addresses had two owners", s.adds, s.dels, s.killed, s.dups)
		})
	}
}

// storm is what the workers share.
type storm struct {
	*node
	t         *testing.T
	bin, conf string

	mu    sync.Mutex
	owner map[string]string // address to container, from ADD's answer to DEL's start

	adds, dels, killed, dups int
}

func (s *storm) fate(rng *rand.Rand) time.Duration {
	if rng.IntN(20) > 0 {
		return 0
	}
	return time.Duration(1+rng.IntN(20000)) * time.Microsecond
}

func (s *storm) work(ns *ns, rng *rand.Rand, w, rounds int) {
	for i := range rounds {
		id := fmt.Sprintf("w%di%d", w, i)
		out, err := s.mortal(s.bin, "ADD", id, ns.Path(), s.conf, s.fate(rng))
		mine := ""
		s.mu.Lock()
		s.adds++
		switch {
		case err == nil:
			mine = addressIn(string(out))
			if o, dup := s.owner[mine]; dup {
				s.dups++
				s.t.Errorf("%s belongs to %s and %s", mine, o, id)
			}
			s.owner[mine] = id
		case errors.Is(err, errKilled):
			s.killed++
		default:
			s.t.Errorf("ADD %s: %v", id, err)
		}
		s.mu.Unlock()
		time.Sleep(time.Duration(rng.IntN(10)) * time.Millisecond) // others have time to get the address too
		s.mu.Lock()
		delete(s.owner, mine)
		s.mu.Unlock()
		for after := s.fate(rng); ; after = 0 { // a runtime tries until DEL succeeds
			_, err := s.mortal(s.bin, "DEL", id, ns.Path(), s.conf, after)
			s.mu.Lock()
			s.dels++
			if errors.Is(err, errKilled) {
				s.killed++
			} else if err != nil {
				s.t.Errorf("DEL %s: %v", id, err)
			}
			s.mu.Unlock()
			if err == nil || !errors.Is(err, errKilled) {
				break
			}
		}
	}
}

// TestTortureReboots fills most of a /24 again and again without a DEL: the machine restarts in between.
func TestTortureReboots(t *testing.T) {
	boots, pods := 3, 30
	if torture() {
		boots, pods = 50, 200
	}
	n := newNode(t)
	for _, k := range kinds(t, n) {
		t.Run(k.name, func(t *testing.T) {
			bin, conf := n.as(t, k.plugin), k.conf(n, "")
			for boot := range boots {
				var all []*ns
				for i := range pods {
					s := newNS(t)
					all = append(all, s)
					if _, err := n.run(call{verb: "ADD", id: fmt.Sprintf("b%dp%d", boot, i), netns: s.Path(), conf: conf, bin: bin}); err != nil {
						t.Fatalf("boot %d, pod %d: %v", boot, i, err)
					}
				}
				n.reboot(t, all, conf)
			}
			if _, err := n.run(call{verb: "STATUS", conf: conf, bin: bin}); err != nil {
				t.Error(err)
			}
			eventually(t, func() bool { return n.census(t) == "" })
			leases, _ := filepath.Glob(filepath.Join(leaseDir(conf), "10.*"))
			if len(leases) > 0 {
				t.Errorf("%d addresses are leaked", len(leases))
			}
			t.Logf("%d boots, %d pods each, %d addresses leaked", boots, pods, len(leases))
		})
	}
}

func leaseDir(conf string) string {
	var c struct {
		Name string
		IPAM struct{ DataDir string }
	}
	if err := json.Unmarshal([]byte(conf), &c); err != nil || c.IPAM.DataDir == "" {
		return "/nonexistent"
	}
	return filepath.Join(c.IPAM.DataDir, c.Name)
}

// reboot is what a restart does to a node whose state directory survives: every namespace, link and rule is gone, the
// boot id is another, and every file is older than the boot.
func (n *node) reboot(t *testing.T, all []*ns, conf string) {
	t.Helper()
	for _, s := range all {
		s.Close()
	}
	n.sh(t, "nft flush ruleset")
	lock := filepath.Join(n.state, "lock")
	b, err := os.ReadFile(lock)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(lock, append([]byte("00000000"), b[8:]...), 0o600); err != nil {
		t.Fatal(err)
	}
	long := time.Unix(1e9, 0)
	files, _ := filepath.Glob(filepath.Join(leaseDir(conf), "*"))
	for _, f := range files {
		if err := os.Chtimes(f, long, long); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, func() bool {
		out := n.sh(t, "ip -o link")
		return !strings.Contains(out, "bth") && !strings.Contains(out, "veth")
	})
}
