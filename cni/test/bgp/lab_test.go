package bgp

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/cni/test/netlab"
)

// build compiles berth-bgp once, where another user can execute it.
var build = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "berth-bgp-test")
	if err != nil {
		return "", err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "berth-bgp")
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", bin, "github.com/berth-project/berth/cni/cmd/berth-bgp")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return bin, nil
})

// ns is a network namespace that lives as long as its descriptor.
type ns struct{ *netlab.NS }

func newNS(t testing.TB) *ns {
	t.Helper()
	return &ns{netlab.Bare(t)}
}

// sh runs one command (no shell) in the namespace.
func (n *ns) sh(t testing.TB, line string) string {
	t.Helper()
	out, err := n.Try(line)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// node is a namespace with one link, at 10.0.0.N and fd00::N of a switch that all nodes of a lab share.
type node struct {
	*ns
	n      int
	v4, v6 netip.Addr
	dir    string
}

// newLab makes n nodes on a switch. At the end it checks that no process is left in them.
func newLab(t testing.TB, n int) []*node {
	t.Helper()
	hub := newNS(t)
	hub.sh(t, "ip link add br0 type bridge")
	hub.sh(t, "ip link set br0 up")
	var all []*node
	for i := 1; i <= n; i++ {
		x := &node{ns: newNS(t), n: i, dir: t.TempDir(), v4: netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), v6: netip.MustParseAddr(fmt.Sprintf("fd00::%x", i))}
		hub.sh(t, fmt.Sprintf("ip link add p%d type veth peer name eth0 netns %s", i, x.Path()))
		hub.sh(t, fmt.Sprintf("ip link set p%d master br0 up", i))
		for _, line := range []string{
			"ip link set lo up", "ip link set eth0 address " + fmt.Sprintf("02:00:00:00:00:%02x", i),
			"ip addr add " + x.v4.String() + "/24 dev eth0", "ip addr add " + x.v6.String() + "/64 dev eth0 nodad",
			"ip link set eth0 up",
		} {
			x.sh(t, line)
		}
		all = append(all, x)
	}
	t.Cleanup(func() {
		for _, x := range all {
			x.checkEmpty(t)
		}
	})
	return all
}

// checkEmpty says what processes are still in the namespace.
func (x *node) checkEmpty(t testing.TB) {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(x.Path(), &st); err != nil {
		t.Error(err)
		return
	}
	var left []string
	for range 20 {
		left = nil
		dirs, err := filepath.Glob("/proc/[0-9]*")
		if err != nil {
			t.Error(err)
		}
		for _, d := range dirs {
			if d == fmt.Sprintf("/proc/%d", os.Getpid()) {
				continue // its first thread may have been the one that do threw away: that one stays
			}
			var o unix.Stat_t
			if unix.Stat(d+"/ns/net", &o) == nil && o.Ino == st.Ino && o.Dev == st.Dev {
				comm, err := os.ReadFile(d + "/comm")
				if err == nil {
					left = append(left, d+" "+strings.TrimSpace(string(comm)))
				}
			}
		}
		if left == nil {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Errorf("processes are left in a node: %v", left)
}

// daemon is a process that runs in a node until the test ends.
type daemon struct {
	cmd *exec.Cmd
	out *bytes.Buffer
}

func (x *node) start(t testing.TB, args ...string) *daemon {
	t.Helper()
	d := &daemon{cmd: exec.Command(args[0], args[1:]...), out: new(bytes.Buffer)}
	d.cmd.Stdout, d.cmd.Stderr = d.out, d.out
	if err := x.Do(d.cmd.Start); err != nil {
		t.Fatalf("%v: %v", args, err)
	}
	t.Cleanup(func() {
		d.kill()
		if t.Failed() {
			t.Logf("%s said:\n%s", filepath.Base(args[0]), tail(d.out.String(), 4000))
		}
	})
	return d
}

// kill ends the process as a crash would, once.
func (d *daemon) kill() {
	if d.cmd.ProcessState == nil {
		_ = d.cmd.Process.Kill()
		_ = d.cmd.Wait()
	}
}

func tail(s string, n int) string { return s[max(0, len(s)-n):] }

// eventually fails unless what becomes true in time; the last error says what is missing.
func eventually(t testing.TB, within time.Duration, what func() error) {
	t.Helper()
	if err := await(within, what); err != nil {
		t.Fatalf("after %v: %v", within, err)
	}
}

func await(within time.Duration, what func() error) error {
	if os.Getenv("BERTH_CONFORMANCE") == "" {
		within *= 5 // beside other packages' tests, on a machine that may be slow
	}
	deadline := time.Now().Add(within)
	for {
		err := what()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func ip(s string) netip.Addr    { return netip.MustParseAddr(s) }
func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }
