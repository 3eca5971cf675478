package torture

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth/e2e/harness"
)

// never are the failpoints that the life of a pod does not meet: pulls and removals of images, and what another cgroup
// driver does.
func never(name string) bool {
	return !strings.HasPrefix(name, "cri.") && (!node.lab.Systemd() || !strings.HasPrefix(name, "systemd."))
}

// TestFailpoints lets the daemon die at each step of a pod's life in turn. The client repeats what it was doing, as
// the kubelet does; the life goes on to its end and nothing is left.
func TestFailpoints(t *testing.T) {
	out, err := exec.Command(filepath.Join(node.lab.Bin, "berth-cri"), "failpoints").Output()
	if err != nil {
		t.Fatal(err)
	}
	for name := range strings.FieldsSeq(string(out)) {
		if never(name) {
			continue
		}
		t.Run(name, func(t *testing.T) { dieAt(t, name) })
	}
}

func dieAt(t *testing.T, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
	defer cancel()
	t.Cleanup(func() { evict(t) })
	if err := node.process().Stop(); err != nil {
		t.Fatal(err)
	}
	arm := filepath.Join(node.lab.Run, "berth", "failpoints") // not the environment, which the CNI plugins get too
	if err := os.WriteFile(arm, []byte(name+"=1*kill\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := node.start(ctx, nil)
	if err := errors.Join(err, os.Remove(arm)); err != nil {
		t.Fatal(err)
	}
	armed := node.process()
	died := make(chan error, 1)
	go func() { // what systemd does
		select {
		case <-armed.Done():
			_, err := node.start(ctx, nil)
			died <- err
		case <-ctx.Done():
			died <- ctx.Err()
		}
	}()
	l := &ledger{}
	if err := life(ctx, node, l, "sweep"); err != nil {
		t.Error(err)
	}
	for _, f := range l.faults {
		t.Error(f)
	}
	select {
	case <-armed.Done():
		if err := <-died; err != nil {
			t.Error(err)
		}
	default:
		t.Errorf("a pod's life does not meet %s", name)
		cancel()
		<-died //nolint:errcheck // it was cancelled
	}
	node.clean(t)
}

// TestSecondDaemon: on the same directories it ends within a second, names the reason, and the first goes on.
func TestSecondDaemon(t *testing.T) {
	t.Cleanup(func() { evict(t) })
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	p, err := runPod(ctx, node, "second-daemon")
	if err != nil {
		t.Fatal(err)
	}
	before := node.census()
	start := time.Now()
	second, err := harness.Start(t.TempDir(), "second", nil, filepath.Join(node.lab.Bin, "berth-cri"), "--config", node.conf)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-second.Done():
	case <-time.After(5 * time.Second):
		second.Kill()
		t.Fatal("a second daemon runs on")
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("it took %v to refuse", took)
	}
	if code := second.ExitCode(); code == 0 {
		t.Error("it exits 0")
	}
	if said := second.Tail(3); !strings.Contains(said, "another berth-cri uses "+filepath.Join(node.lab.Dir, "berth")) || !strings.Contains(said, "stop it first") {
		t.Errorf("it says %q, want who holds what, and the way out", said)
	}
	if changed := append(before.Diff(node.census()), node.census().Diff(before)...); len(changed) > 0 {
		t.Errorf("it changed:\n  %s", strings.Join(changed, "\n  "))
	}
	if ip, err := p.address(ctx); err != nil || ip != p.ip {
		t.Errorf("the first daemon's pod has address %q, had %q (%v)", ip, p.ip, err)
	}
	if err := p.remove(ctx); err != nil {
		t.Error(err)
	}
	node.clean(t)
}
