package torture

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/e2e/harness"
	"github.com/berth-project/berth/e2e/killpoint"
)

// another is the image that the sweep pulls and removes.
const another = "registry.k8s.io/berth/web:1"

// scene is a pod's life, an RPC a step, that is interrupted at one of them.
type scene struct {
	p     *sandbox
	id    string
	lame  bool // a shim was killed: what it was doing may have failed, and its container with it
	fresh string
}

// rpc is one step.
type rpc struct {
	name string
	do   func(ctx context.Context, s *scene) error
}

// needs says that a step's failure is one even after a shim was killed: what removes must always work.
func (r rpc) needs() bool {
	return strings.HasPrefix(r.name, "Stop") || strings.HasPrefix(r.name, "Remove") || strings.HasPrefix(r.name, "Pull") || r.name == "RunPodSandbox"
}

// rpcs are the twelve that change something, in a pod's order.
func rpcs() []rpc {
	image := &cri.ImageSpec{Image: another}
	on := func(name string, do func(ctx context.Context, c *harness.Client, s *scene) error) rpc {
		return rpc{name, func(ctx context.Context, s *scene) error {
			return harness.Again(ctx, name, func(ctx context.Context) error { return do(ctx, node.client, s) })
		}}
	}
	return []rpc{
		on("PullImage", func(ctx context.Context, c *harness.Client, _ *scene) error {
			_, err := c.Images.PullImage(ctx, &cri.PullImageRequest{Image: image})
			return err
		}),
		{"RunPodSandbox", func(ctx context.Context, s *scene) (err error) {
			s.p, err = runPod(ctx, node, s.fresh)
			return err
		}},
		{"CreateContainer", func(ctx context.Context, s *scene) (err error) {
			s.id, err = s.p.create(ctx, "one", longScript(3))
			if status.Code(errors.Unwrap(err)) == codes.AlreadyExists { // made, and the answer was lost: as the kubelet, by its name
				s.id, err = s.find(ctx)
			}
			return err
		}},
		{"StartContainer", func(ctx context.Context, s *scene) error { return s.p.n.client.StartContainer(ctx, s.id) }},
		on("ExecSync", func(ctx context.Context, c *harness.Client, s *scene) error {
			r, err := c.Runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: s.id, Cmd: []string{"echo", "here"}, Timeout: 10})
			if err == nil && string(r.GetStdout()) != "here\n" {
				err = fmt.Errorf("it says %q", r.GetStdout())
			}
			return err
		}),
		on("UpdateContainerResources", func(ctx context.Context, c *harness.Client, s *scene) error {
			_, err := c.Runtime.UpdateContainerResources(ctx, &cri.UpdateContainerResourcesRequest{ContainerId: s.id, Linux: &cri.LinuxContainerResources{MemoryLimitInBytes: 80 << 20}})
			return err
		}),
		on("ReopenContainerLog", func(ctx context.Context, c *harness.Client, s *scene) error {
			_, err := c.Runtime.ReopenContainerLog(ctx, &cri.ReopenContainerLogRequest{ContainerId: s.id})
			return err
		}),
		{"StopContainer", func(ctx context.Context, s *scene) error { return s.p.n.client.StopContainer(ctx, s.id, 5*time.Second) }},
		on("RemoveContainer", func(ctx context.Context, c *harness.Client, s *scene) error {
			_, err := c.Runtime.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: s.id})
			return err
		}),
		on("StopPodSandbox", func(ctx context.Context, c *harness.Client, s *scene) error {
			_, err := c.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: s.p.id})
			return err
		}),
		on("RemovePodSandbox", func(ctx context.Context, c *harness.Client, s *scene) error {
			_, err := c.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: s.p.id})
			return err
		}),
		on("RemoveImage", func(ctx context.Context, c *harness.Client, _ *scene) error {
			_, err := c.Images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: image})
			return err
		}),
	}
}

// find is the container's id, by its pod.
func (s *scene) find(ctx context.Context) (id string, err error) {
	err = harness.Again(ctx, "ListContainers", func(ctx context.Context) error {
		r, err := node.client.Runtime.ListContainers(ctx, &cri.ListContainersRequest{Filter: &cri.ContainerFilter{PodSandboxId: s.p.id}})
		if err == nil && len(r.GetContainers()) != 1 {
			err = fmt.Errorf("pod %s has %d containers", s.p.id, len(r.GetContainers()))
		}
		if err == nil {
			id = r.GetContainers()[0].GetId()
		}
		return err
	})
	return id, err
}

// target is a call to be met: of the daemon or of its shim, while an RPC is served. Without errno the process is killed.
type target struct {
	who, rpc, point string
	errno           unix.Errno
}

func (g target) String() string {
	if g.errno != 0 {
		return fmt.Sprintf("%s of the %s, %q fails with %v", g.rpc, g.who, g.point, g.errno)
	}
	return fmt.Sprintf("%s of the %s, killed before %q", g.rpc, g.who, g.point)
}

// play goes through a pod's life and watches one step of it; with a point that is met there. What is killed comes back, as
// systemd and the daemon see to, a call that has failed is made again, and the life goes on to its end.
func play(ctx context.Context, g target, serial int) (seen []string, met bool, err error) {
	s := &scene{fresh: fmt.Sprintf("sweep-%d", serial)}
	for _, r := range rpcs() {
		if r.name != g.rpc {
			if err := r.do(ctx, s); err != nil && (!s.lame || r.needs()) {
				return seen, met, err
			}
			continue
		}
		seen, met, err = s.watch(ctx, r, g)
		if err != nil && (!s.lame || r.needs()) {
			return seen, met, err
		}
	}
	return seen, met, errors.Join(os.RemoveAll(s.p.config.GetLogDirectory()), node.lab.RemovePodParent(s.fresh))
}

// watch does the one step.
func (s *scene) watch(ctx context.Context, r rpc, g target) (seen []string, met bool, err error) {
	daemon, pid := node.process(), node.process().Pid()
	if g.who == "shim" {
		shims := node.shims()
		if len(shims) == 0 {
			return nil, false, nil
		}
		pid, s.lame = shims[0], g.point != ""
	}
	w, err := killpoint.Start(ctx, pid, g.point, g.errno)
	if err != nil {
		return nil, false, err
	}
	answered := make(chan error, 1)
	go func() { answered <- r.do(ctx, s) }()
	revived := make(chan error, 1)
	watched, stop := context.WithCancel(ctx)
	defer stop()
	go func() { // what systemd does
		select {
		case <-daemon.Done():
			_, err := node.start(ctx, nil)
			revived <- err
		case <-watched.Done():
			revived <- watched.Err()
		}
	}()
	err = <-answered
	seen, met, werr := w.Stop(100 * time.Millisecond) // some of it comes after the answer
	switch {
	case g.errno != 0 && met:
		total.add(errnoInjections, 1)
		if err != nil { // the client asks again
			s.lame = s.lame || r.name == "StartContainer"
			err = r.do(ctx, s)
		}
	case met && g.who == "daemon":
		total.add(daemonKills, 1)
		err = errors.Join(err, <-revived)
	case met:
		total.add(shimKills, 1)
		time.Sleep(50 * time.Millisecond)
	}
	return seen, met, errors.Join(err, werr)
}

// TestKilledAtEachCall lists the calls by which the daemon and its shims change something, for each RPC, and kills them before
// every one: the client repeats what it was doing, the life goes to its end, and nothing is left. Without BERTH_TORTURE=1 a
// sample is killed.
func TestKilledAtEachCall(t *testing.T) { sweepAll(t, "swept", 0) }

// TestEachCallFails lets every one of those calls fail instead, with an error that it may have.
func TestEachCallFails(t *testing.T) {
	sweepAll(t, "failed", unix.ENOSPC, unix.EIO, unix.EMFILE, unix.ENOMEM, unix.EROFS)
}

// sweepAll meets the points of every RPC in the daemon and in its shims, with one error after the other.
func sweepAll(t *testing.T, how string, errnos ...unix.Errno) {
	t.Helper()
	t.Cleanup(func() { evict(t) })
	serial := 0
	for _, who := range []string{"daemon", "shim"} {
		single(t)
		var points, swept, runs int
		for _, r := range rpcs() {
			listed := list(t, target{who: who, rpc: r.name}, &serial)
			points += len(listed)
			met := 0
			for i, p := range sample(listed, r.name, who) {
				was := false
				for n := range min(times(1, 2), len(errnos)) { // each in two ways
					g := target{who: who, rpc: r.name, point: p, errno: errnos[(i+n)%len(errnos)]}
					for try := 0; try < 3; try++ { // some are met by chance: a lock that was taken, a name that was there
						serial++
						runs++
						if sweep(t, g, serial) {
							was = true
							break
						}
					}
				}
				if was {
					met++
				}
			}
			swept += met
			t.Logf("%-6s %-26s %3d seen %3d %s", who, r.name, len(listed), met, how)
		}
		t.Logf("%-6s %-26s %3d seen %3d %s in %d lives", who, "all", points, swept, how, runs)
		if want := times(5, points*8/10); swept < want {
			t.Errorf("%s: %d of %d points were met, want %d", who, swept, points, want)
		}
	}
	node.clean(t)
}

// single has the daemon end supervisors that it does not need, which those before have left: the one that is watched must be
// the one that the pod comes to.
func single(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err := node.restart(ctx)
	if err == nil {
		err = harness.Until(ctx, 20*time.Millisecond, nil, func() error {
			if n := len(node.shims()); n > 1 {
				return fmt.Errorf("%d supervisors without pods", n)
			}
			return nil
		})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// list is what one RPC does, over three lives.
func list(t *testing.T, g target, serial *int) []string {
	t.Helper()
	var all []string
	for range times(1, 3) {
		*serial++
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		seen, _, err := play(ctx, g, *serial)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range seen {
			if !slices.Contains(all, p) {
				all = append(all, p)
			}
		}
	}
	if keep := os.Getenv("BERTH_KEEP"); keep != "" {
		if err := os.WriteFile(filepath.Join(keep, g.who+"-"+g.rpc), []byte(strings.Join(all, "\n")+"\n"), 0o644); err != nil {
			t.Error(err)
		}
	}
	return all
}

// sample takes one or two of a list, others each day; or all.
func sample(all []string, name, who string) []string {
	want := times(2, len(all))
	if who == "shim" {
		want = times(1, len(all))
	}
	if len(all) <= want {
		return all
	}
	var out []string
	for i := range want {
		out = append(out, all[(time.Now().YearDay()*7+len(name)+i*len(all)/want)%len(all)])
	}
	return out
}

// sweep meets one point and says whether it was met. What is left then, or a daemon that ends by itself, is a failure.
func sweep(t *testing.T, g target, serial int) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_, met, err := play(ctx, g, serial)
	if err != nil {
		total.add(otherFaults, 1)
		t.Errorf("%v (met: %v): %v", g, met, err)
		evict(t)
		return met
	}
	select {
	case <-node.process().Done():
		t.Errorf("%v: the daemon has ended: %s", g, node.process().Tail(5))
		evict(t)
	default:
	}
	left := node.leftovers()
	if len(left) > 0 && g.errno != 0 { // what could not be removed may wait for the daemon's next start, and no longer
		if err := node.restart(ctx); err != nil {
			t.Fatal(err)
		}
		t.Logf("%v: left until the next start:\n  %s", g, strings.Join(left, "\n  "))
		left = node.leftovers()
	}
	if len(left) > 0 {
		total.add(leaks, len(left))
		t.Errorf("%v leaves:\n  %s", g, strings.Join(left, "\n  "))
		evict(t)
		if err := node.restart(ctx); err != nil { // the next one is to be judged by itself
			t.Fatal(err)
		}
	}
	return met
}
