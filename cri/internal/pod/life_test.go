package pod

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/proto/errs"
)

const (
	isCreated = cri.ContainerState_CONTAINER_CREATED
	isRunning = cri.ContainerState_CONTAINER_RUNNING
	isExited  = cri.ContainerState_CONTAINER_EXITED
)

func (n *node) state(id string) cri.ContainerState {
	n.t.Helper()
	return n.status(id).CRI()
}

// TestLife walks the state diagrams of a pod and a container, and tries every arrow that is not there.
func TestLife(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	pod := n.run("life")
	if again := n.run("life"); again != pod {
		t.Errorf("a retry made another pod: %s and %s", pod, again)
	}
	other := podConfig("life")
	other.Hostname = "changed"
	if _, err := n.Run(ctx, other, ""); !errors.Is(err, errs.AlreadyExists) {
		t.Errorf("the same name, another config: %v", err)
	}
	config := containerConfig("c", "/bin/sh", "-c", "echo out; exec /bin/sleep 100")
	id, err := n.Create(ctx, pod, config)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := n.Create(ctx, pod, config); err != nil || again != id {
		t.Errorf("a retry made another container: %s, %v", again, err)
	}
	if st := n.state(id); st != isCreated {
		t.Errorf("created: %v", st)
	}
	if _, _, _, err := n.ExecSync(ctx, id, []string{"/bin/true"}, 0); !errors.Is(err, errs.FailedPrecondition) {
		t.Errorf("exec before the start: %v", err)
	}
	if err := n.StopContainer(ctx, id, time.Second); err != nil {
		t.Errorf("stop before the start: %v", err)
	}
	if err := n.Start(ctx, id); err != nil {
		t.Fatal(err)
	}
	if st := n.state(id); st != isRunning {
		t.Errorf("started: %v", st)
	}
	if err := n.Start(ctx, id); !errors.Is(err, errs.FailedPrecondition) {
		t.Errorf("second start: %v", err)
	}
	out, _, code, err := n.ExecSync(ctx, id, []string{"/bin/sh", "-c", "echo hello; exit 3"}, 5*time.Second)
	if err != nil || string(out) != "hello\n" || code != 3 {
		t.Errorf("exec: %q %d %v", out, code, err)
	}
	if _, _, _, err = n.ExecSync(ctx, id, []string{"/bin/sleep", "50"}, 200*time.Millisecond); !errors.Is(err, errs.DeadlineExceeded) {
		t.Errorf("exec that takes too long: %v", err)
	}
	// sleep as pid 1 has no handler: only the kill ends it
	if err := n.StopContainer(ctx, id, 300*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if st := n.await(id); st.CRI() != isExited || st.Exit.Code != 137 || st.Reason != "Error" {
		t.Errorf("stopped: %+v", st)
	}
	for range 2 {
		if err := errors.Join(n.StopContainer(ctx, id, 0), n.Stop(ctx, pod)); err != nil {
			t.Errorf("stop again: %v", err)
		}
	}
	if p, err := n.Pod(pod); err != nil || p.State().Ready {
		t.Errorf("stopped pod: %v", err)
	}
	if _, err := n.Create(ctx, pod, containerConfig("late", "/bin/true")); !errors.Is(err, errs.FailedPrecondition) {
		t.Errorf("create in a stopped pod: %v", err)
	}
	for range 2 {
		if err := errors.Join(n.RemoveContainer(ctx, id), n.Remove(ctx, pod)); err != nil {
			t.Errorf("remove: %v", err)
		}
	}
	if _, err := n.Pod(pod); !errors.Is(err, errs.NotFound) {
		t.Errorf("removed pod: %v", err)
	}
}

func TestExits(t *testing.T) {
	n := newNode(t)
	pod := n.run("exits")
	for _, c := range []struct {
		command, reason string
		code            int
	}{
		{"exit 0", "Completed", 0},
		{"exit 7", "Error", 7},
		{"/bin/kill -9 $$; exit 1", "Error", 1}, // pid 1 does not hear its own SIGKILL
	} {
		if st := n.await(n.start(pod, c.command, "/bin/sh", "-c", c.command)); st.Reason != c.reason || st.Exit.Code != c.code {
			t.Errorf("%q: %+v", c.command, st)
		}
	}
	id, err := n.Create(t.Context(), pod, containerConfig("nothing", "/no/such/program"))
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Start(t.Context(), id); err == nil {
		t.Error("a program that does not exist started")
	}
	c, err := n.Container(id)
	if err != nil {
		t.Fatal(err)
	}
	if st := c.State(); st.CRI() != isExited || st.Reason != "StartError" || st.Exit.Code != 128 || st.Message == "" {
		t.Errorf("failed start: %+v", st)
	}
}

// TestManyCallers: 64 calls for one pod make one.
func TestManyCallers(t *testing.T) {
	n := newNode(t)
	var wg sync.WaitGroup
	ids := make([]string, 64)
	for i := range ids {
		wg.Go(func() { ids[i], _ = n.Run(t.Context(), podConfig("many"), "") })
	}
	wg.Wait()
	for _, id := range ids {
		if id == "" || id != ids[0] {
			t.Fatalf("not one pod: %q", ids)
		}
	}
	if n.net.adds != 1 || len(n.Pods()) != 1 {
		t.Errorf("%d attachments, %d pods", n.net.adds, len(n.Pods()))
	}
}

// TestCallerLeaves: a call that is cut off goes on, and its retry gets its result.
func TestCallerLeaves(t *testing.T) {
	n := newNode(t)
	gate := make(chan struct{})
	n.net.fail = func(string) error { <-gate; return nil }
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if id, err := n.Run(ctx, podConfig("left"), ""); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("%q %v", id, err)
	}
	close(gate)
	id := n.run("left")
	if n.net.adds != 1 {
		t.Errorf("%d attachments for pod %s", n.net.adds, id)
	}
}

// TestFailedRun: a pod whose network fails leaves nothing, and its name is free.
func TestFailedRun(t *testing.T) {
	n := newNode(t)
	n.net.fail = func(verb string) error {
		if verb == "add" {
			return errs.Unavailable.Errorf("no addresses")
		}
		return nil
	}
	if _, err := n.Run(t.Context(), podConfig("fails"), ""); !errors.Is(err, errs.Unavailable) {
		t.Fatal(err)
	}
	if len(n.Pods()) != 0 {
		t.Errorf("%d pods", len(n.Pods()))
	}
	// the teardown fails as well: the pod is listed, not ready, for its removal to try again
	n.net.fail = func(verb string) error { return errs.Unavailable.Errorf("%s fails", verb) }
	if _, err := n.Run(t.Context(), podConfig("fails"), ""); err == nil || !strings.Contains(err.Error(), "teardown failed") {
		t.Fatal(err)
	}
	if ps := n.Pods(); len(ps) != 1 || ps[0].State().Ready {
		t.Fatalf("pods: %v", ps)
	}
	n.net.fail = nil
	n.restart() // also a later daemon knows that it may hold an address
	before := n.net.dels
	if err := n.Remove(t.Context(), n.Pods()[0].ID); err != nil || n.net.dels == before {
		t.Errorf("its removal detached nothing: %v", err)
	}
}

// TestDaemonRestarts: everything is there again, an exit in between is known, what ran runs.
func TestDaemonRestarts(t *testing.T) {
	n := newNode(t)
	pod := n.run("restart")
	stays := n.start(pod, "stays", "/bin/sleep", "100")
	ends := n.start(pod, "ends", "/bin/sh", "-c", "read x < /dev/null; /bin/sleep 0.3; exit 5")
	waits, err := n.Create(t.Context(), pod, containerConfig("waits", "/bin/sleep", "100"))
	if err != nil {
		t.Fatal(err)
	}
	n.down()
	time.Sleep(600 * time.Millisecond) // one ends while nobody looks
	n.up()
	if p, err := n.Pod(pod); err != nil || !p.State().Ready || len(p.State().IPs) != 2 {
		t.Fatalf("pod: %v", err)
	}
	if st := n.await(ends); st.Exit.Code != 5 {
		t.Errorf("ended meanwhile: %+v", st)
	}
	if n.state(stays) != isRunning || n.state(waits) != isCreated {
		t.Errorf("%v, %v", n.state(stays), n.state(waits))
	}
	if out, _, _, err := n.ExecSync(t.Context(), stays, []string{"/bin/echo", "here"}, 5*time.Second); err != nil || string(out) != "here\n" {
		t.Errorf("exec after a restart: %q, %v", out, err)
	}
	if err := n.Start(t.Context(), waits); err != nil {
		t.Errorf("start after a restart: %v", err)
	}
	if again := n.run("restart"); again != pod {
		t.Errorf("the name means %s now", again)
	}
}

// TestReboot: records of another boot are listed as ended, keep what they are, and can be removed.
func TestReboot(t *testing.T) {
	n := newNode(t)
	pod := n.run("boot")
	id := n.start(pod, "c", "/bin/sleep", "100")
	n.down()
	if err := n.groups.Kill(n.own); err != nil { // a machine that goes down takes shims and containers along
		t.Fatal(err)
	}
	for len(n.groups.Pids(n.own)) > 0 {
		time.Sleep(10 * time.Millisecond)
	}
	for _, d := range []string{"run/shims", "run/exits"} {
		if err := os.RemoveAll(filepath.Join(n.dir, d)); err != nil {
			t.Fatal(err)
		}
	}
	n.boot = "boot-2"
	n.up()
	p, err := n.Pod(pod)
	if err != nil || p.State().Ready || p.Config.GetMetadata().GetName() != "boot" {
		t.Fatalf("pod after a reboot: %v", err)
	}
	if st := n.await(id); st.CRI() != isExited || st.Exit.Code != 255 || st.Reason != "Unknown" {
		t.Errorf("container after a reboot: %+v", st)
	}
	if n.net.attached[pod] {
		t.Error("the attachment of a pod that is lost is held")
	}
}

// TestShorterStop: a second stop with less patience shortens the first.
func TestShorterStop(t *testing.T) {
	n := newNode(t)
	id := n.start(n.run("stop"), "c", "/bin/sleep", "100")
	long := make(chan error, 1)
	go func() { long <- n.StopContainer(t.Context(), id, time.Minute) }()
	time.Sleep(100 * time.Millisecond)
	start := time.Now()
	if err := n.StopContainer(t.Context(), id, 200*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if err := <-long; err != nil || time.Since(start) > 10*time.Second {
		t.Errorf("the patient stop: %v after %v", err, time.Since(start))
	}
}

// TestImageVolume: it is read-only, its sub path ends inside, and it goes with the container.
func TestImageVolume(t *testing.T) {
	n := newNode(t)
	if err := os.Symlink("/etc", filepath.Join(n.images.layer, "escape")); err != nil {
		t.Fatal(err)
	}
	pod := n.run("volume")
	config := containerConfig("c", "/bin/sh", "-c", "cat /vol/inside && ! echo x > /vol/inside")
	config.Mounts = []*cri.Mount{{ContainerPath: "/vol", Image: &cri.ImageSpec{Image: "busybox"}, ImageSubPath: "data"}}
	id, err := n.Create(t.Context(), pod, config)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Start(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if st := n.await(id); st.Exit.Code != 0 {
		t.Errorf("%+v", st)
	}
	for _, sub := range []string{"../..", "/etc", "data/../../..", "nowhere"} {
		config := containerConfig("sub"+sub, "/bin/true")
		config.Mounts = []*cri.Mount{{ContainerPath: "/vol", Image: &cri.ImageSpec{Image: "busybox"}, ImageSubPath: sub}}
		var prefixed *errs.Prefixed
		if _, err := n.Create(t.Context(), pod, config); !errors.As(err, &prefixed) || prefixed.Prefix != "ImageVolumeMountFailed" {
			t.Errorf("sub path %q: %v", sub, err)
		}
	}
}

// TestSubPath: a link in an image leads nowhere but into the image.
func TestSubPath(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, "a/etc"), 0o755), os.Symlink("/etc", filepath.Join(dir, "link")),
		os.Symlink("../../../../etc", filepath.Join(dir, "a/up")), os.MkdirAll(filepath.Join(dir, "etc"), 0o755)); err != nil {
		t.Fatal(err)
	}
	for sub, want := range map[string]string{"": dir, "a": dir + "/a", "link": dir + "/etc", "a/up": dir + "/etc", "a/../etc": dir + "/etc"} {
		if got, err := subPath(dir, sub); err != nil || got != want {
			t.Errorf("%q: %q, %v", sub, got, err)
		}
	}
	for _, sub := range []string{"/", "..", "a/../../x", "none"} {
		if got, err := subPath(dir, sub); err == nil {
			t.Errorf("%q: %q", sub, got)
		}
	}
}
