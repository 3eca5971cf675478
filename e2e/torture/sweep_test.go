package torture

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/e2e/harness"
)

// never are the failpoints that the life of a pod does not meet: pulls and removals of images, and what another cgroup
// driver does.
func never(name string) bool {
	return !strings.HasPrefix(name, "cri.") && (!node.lab.Systemd() || !strings.HasPrefix(name, "systemd."))
}

// TestFailpoints lets the daemon, and then its shim, die at each step of a pod's life in turn. The client repeats what it was
// doing, as the kubelet does; the life goes on to its end and nothing is left.
func TestFailpoints(t *testing.T) {
	for _, name := range failpoints(t, "berth-cri", "failpoints") {
		if !never(name) {
			t.Run(name, func(t *testing.T) { dieAt(t, name) })
		}
	}
	for _, name := range failpoints(t, "berth-shim", "--failpoints") {
		t.Run(name, func(t *testing.T) { shimDiesAt(t, name) })
	}
}

// failpoints are those that a program lists.
func failpoints(t *testing.T, program string, args ...string) []string {
	t.Helper()
	out, err := exec.Command(filepath.Join(node.lab.Bin, program), args...).Output()
	names := strings.Fields(string(out))
	if err != nil || len(names) == 0 {
		t.Fatalf("%s has the failpoints %q, %v", program, names, err)
	}
	return names
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

// shimDiesAt is dieAt for the supervisor. It is armed as the successor of one that was killed, since a shim has no directory
// before it starts; the pod that the successor takes over must not notice either death.
func shimDiesAt(t *testing.T, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
	defer cancel()
	t.Cleanup(func() { evict(t) })
	l := &ledger{}
	residents, err := settle(ctx, node, l, 1)
	if err != nil {
		t.Fatal(err)
	}
	armed, err := successor(ctx, residents[0], name+"=1*kill\n")
	if err != nil {
		t.Fatal(err)
	}
	if err := life(ctx, node, l, "sweep"); err != nil {
		t.Error(err)
	}
	if slices.Contains(node.shims(), armed) {
		t.Errorf("a pod's life does not meet %s", name)
	}
	if err := residents[0].leave(ctx, l, 40); err != nil {
		t.Error(err)
	}
	for _, f := range l.faults {
		t.Error(f)
	}
	node.clean(t)
}

// successor kills the supervisor of a pod and waits for the next one, which reads arm as its failpoints.
func successor(ctx context.Context, r *resident, arm string) (pid int, err error) {
	dirs, err := filepath.Glob(filepath.Join(node.lab.Run, "berth", "shims", "*"))
	if err != nil {
		return 0, err
	}
	for _, dir := range dirs {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, "failpoints"), []byte(arm), 0o600))
	}
	before := node.shims()
	for _, pid := range before {
		err = errors.Join(err, unix.Kill(pid, unix.SIGKILL))
	}
	if err != nil || len(before) == 0 {
		return 0, fmt.Errorf("%d shims: %w", len(before), err)
	}
	err = harness.Again(ctx, "ExecSync", func(ctx context.Context) error { // answered, it has read them
		_, err := node.client.Runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: r.id, Cmd: []string{"true"}, Timeout: 10})
		return err
	})
	for _, dir := range dirs { // the next one after it lives; the directory of a shim without pods is gone
		if rerr := os.Remove(filepath.Join(dir, "failpoints")); !errors.Is(rerr, os.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}
	after := slices.DeleteFunc(node.shims(), func(pid int) bool { return slices.Contains(before, pid) })
	if err == nil && len(after) != 1 {
		err = fmt.Errorf("shims %v are followed by %v", before, after)
	}
	if err != nil {
		return 0, err
	}
	return after[0], nil
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
