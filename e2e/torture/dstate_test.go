package torture

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/e2e/harness"
)

// frozen is a file system of its own that can be frozen (FIFREEZE): who writes to it then sleeps uninterruptibly.
func frozen(t *testing.T) (dir string, freeze, thaw func()) {
	t.Helper()
	disk, dir := filepath.Join(t.TempDir(), "disk"), t.TempDir()
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(disk, 64<<20); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"mkfs.ext4", "-q", disk}, {"mount", "-o", "loop", disk, dir}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = root.Close()
		var err error
		for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) { // its users die late
			if err = unix.Unmount(dir, 0); err == nil {
				return
			}
		}
		t.Errorf("unmount: %v", err)
	})
	const fiFreeze, fiThaw = 0xc0045877, 0xc0045878 // linux/fs.h: _IOWR('X', 119, int) and 120
	do := func(what uint) {
		if err := unix.IoctlSetInt(int(root.Fd()), what, 0); err != nil {
			t.Errorf("%#x: %v", what, err)
		}
	}
	thaw = sync.OnceFunc(func() { do(fiThaw) })
	return dir, func() { do(fiFreeze); t.Cleanup(thaw) }, thaw
}

// group is a container's cgroup.
func (p *sandbox) group(id string) string {
	if node.lab.Systemd() {
		return node.lab.PodGroup(p.name) + "/cri-berth-" + p.id + ".scope/" + id
	}
	return node.lab.PodGroup(p.name) + "/" + id
}

// sleepsForGood says whether a process sleeps uninterruptibly.
func sleepsForGood(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, after, ok := strings.Cut(string(b), ") ")
	return err == nil && ok && strings.HasPrefix(after, "D")
}

// TestUninterruptible: ten containers sleep where no signal reaches them. Others live and die as ever, what looks at the node
// answers within a second, a stop comes back by its deadline, a daemon starts; when the disk answers again all is well.
func TestUninterruptible(t *testing.T) {
	const count = 10
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	t.Cleanup(func() { evict(t) })
	t.Cleanup(func() { node.clean(t) }) // after the file system is gone
	dir, freeze, thaw := frozen(t)
	p, err := runPod(ctx, node, "stuck")
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for i := range count {
		id, err := p.createWith(ctx, fmt.Sprint("stuck-", i), "while :; do echo x >>/volume/file; usleep 1000; done", dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.n.client.StartContainer(ctx, id); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	freeze()
	for _, id := range ids {
		if err := harness.Until(ctx, 5*time.Millisecond, nil, func() error {
			pids, err := harness.CgroupPids(p.group(id))
			if err == nil && !slices.ContainsFunc(pids, sleepsForGood) {
				err = fmt.Errorf("processes %v of container %s can be woken", pids, id)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	total.add(uninterruptible, count)
	var wg sync.WaitGroup
	for _, id := range ids {
		wg.Go(func() {
			call, cancel := context.WithTimeout(ctx, 4*time.Second)
			defer cancel()
			begin := time.Now()
			_, err := node.client.Runtime.StopContainer(call, &cri.StopContainerRequest{ContainerId: id, Timeout: 1})
			if took := time.Since(begin); took > 6*time.Second || err == nil {
				t.Errorf("a stop of what cannot be stopped: %v after %v", err, took)
			}
		})
	}
	looks(ctx, t, "while they sleep")
	if err := lives(ctx, node, 3); err != nil {
		t.Errorf("the others: %v", err)
	}
	wg.Wait()
	if _, err := killDaemon(ctx); err != nil {
		t.Errorf("a daemon that starts meanwhile: %v", err)
	}
	looks(ctx, t, "after a start")
	begin := time.Now()
	thaw()
	for _, id := range ids {
		if err := p.n.client.StopContainer(ctx, id, 0); err != nil {
			t.Error(err)
		}
		if st, err := p.ended(ctx, id); err != nil || st.GetExitCode() != 137 {
			t.Errorf("container %s ended with %d, %v", id, st.GetExitCode(), err)
		}
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("all have ended %v after the disk answers", took)
	}
	if err := p.remove(ctx); err != nil {
		t.Error(err)
	}
}

// looks asks what a kubelet asks all the time: the slowest answer must come within a second.
func looks(ctx context.Context, t *testing.T, when string) {
	t.Helper()
	rt := node.client.Runtime
	var slowest time.Duration
	for range 20 {
		for name, call := range map[string]func() error{
			"ListPodSandbox":      func() error { _, err := rt.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{}); return err },
			"ListContainers":      func() error { _, err := rt.ListContainers(ctx, &cri.ListContainersRequest{}); return err },
			"ListContainerStats":  func() error { _, err := rt.ListContainerStats(ctx, &cri.ListContainerStatsRequest{}); return err },
			"ListPodSandboxStats": func() error { _, err := rt.ListPodSandboxStats(ctx, &cri.ListPodSandboxStatsRequest{}); return err },
			"Status":              func() error { _, err := rt.Status(ctx, &cri.StatusRequest{Verbose: true}); return err },
			"ImageFsInfo":         func() error { _, err := node.client.Images.ImageFsInfo(ctx, &cri.ImageFsInfoRequest{}); return err },
		} {
			begin := time.Now()
			if err := call(); err != nil {
				t.Errorf("%s %s: %v", name, when, err)
			}
			slowest = max(slowest, time.Since(begin))
		}
	}
	t.Logf("the slowest of 120 looks %s took %v", when, slowest)
	if slowest > time.Second {
		t.Errorf("a look %s takes %v", when, slowest)
	}
}
