package test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	v1 "github.com/berth-project/berth/proto/shim/v1"
)

// subreaper makes the test process the parent of a dead shim's containers, as the daemon is, and collects them.
func subreaper(t *testing.T) {
	t.Helper()
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0) })
}

// collect reaps a process that came to this one.
func collect(t *testing.T, pid int) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for time.Now().Before(deadline) {
		if got, err := unix.Wait4(pid, nil, unix.WNOHANG, nil); got == pid || err != nil {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Errorf("process %d did not come to its subreaper", pid)
}

// die kills a shim.
func (s *shim) die() {
	_ = s.cmd.Process.Kill()
	_, _ = s.cmd.Process.Wait()
}

// adopt gives a dead shim's container to this one.
func (s *shim) adopt(c *ctr) {
	s.t.Helper()
	var fds []*os.File
	for _, h := range c.reply.Handles {
		fds = append(fds, c.out[h])
	}
	req := v1.AdoptContainer{Container: c.start.Container, Pid: c.reply.Pid, StartedAt: c.reply.StartedAt, Handles: c.reply.Handles}
	s.must(v1.MethodAdoptContainer, req, fds, nil)
	s.must(v1.MethodAdoptContainer, req, fds, nil) // repeating it is harmless
	c.s = s
}

// TestDeleteBeforeCollected: an adopted container is dead, and its parent takes its time to collect it. The daemon has found out
// and deletes it: that waits for the end's record, and does not say that the container runs.
func TestDeleteBeforeCollected(t *testing.T) {
	subreaper(t)
	old := launchShim(t)
	c := old.container(spec("sleep", "100"), rootfs(t)).run()
	old.die()
	s := launchShim(t)
	s.adopt(c)
	c.kill(unix.SIGKILL)
	dead := []unix.PollFd{{Fd: int32(c.out[v1.HandlePidfd].Fd()), Events: unix.POLLIN}}
	if n, err := unix.Poll(dead, 5000); n != 1 {
		t.Fatalf("it does not die: %v", err)
	}
	collected := make(chan struct{})
	go func() {
		defer close(collected)
		time.Sleep(300 * time.Millisecond)
		collect(t, c.reply.Pid)
	}()
	begin := time.Now()
	c.delete()
	if e := c.wait(); e.Code != 128+int(unix.SIGKILL) || e.Unknown {
		t.Errorf("its end: %+v", e)
	}
	if time.Since(begin) < 300*time.Millisecond {
		t.Error("it was deleted before its end was known")
	}
	<-collected
}

func TestShimKilledAndReplaced(t *testing.T) {
	subreaper(t)
	old := launchShim(t)
	layer := rootfs(t)
	const lines = 300000
	c := old.container(spec("sh", "-c", "trap 'exit 42' TERM; seq 1 300000; printf half; echo; printf 'end\\n'; while true; do usleep 1000; done"), layer).run()
	code := old.container(spec("sh", "-c", "sleep 0.3; exit 17"), layer).run()
	pod := unique("pod")
	var podReply v1.RunPodReply
	podFds := old.must(v1.MethodRunPod, v1.RunPod{ID: pod, Namespaces: []string{"net", "uts"}, Hostname: "kept"}, nil, &podReply)
	time.Sleep(time.Duration(1+os.Getpid()%9) * time.Millisecond) // in the middle of the output
	old.die()
	collect(t, code.reply.Pid) // it ends while no shim lives

	s := launchShim(t)
	s.must(v1.MethodAdoptPod, v1.AdoptPod{ID: pod, Namespaces: podReply.Namespaces}, podFds, nil)
	s.adopt(c)
	s.adopt(code)
	if e := code.wait(); e.Code != 17 || e.Unknown {
		t.Errorf("exit while no shim lived: %+v", e)
	}
	joined := s.container(spec("hostname"), layer)
	joined.start.Pod, joined.start.Join = pod, []string{"net", "uts"}
	joined.run().wait()
	if joined.text() != "kept\n" {
		t.Errorf("adopted pod's hostname: %q", joined.text())
	}
	deadline := time.Now().Add(20 * time.Second)
	for !strings.HasSuffix(c.text(), "half\nend\n") && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
	}
	if out, code := s.execute(c, "sh", "-c", "cat /proc/1/comm; hostname >/dev/null"); code != 0 || out != "sh\n" {
		t.Errorf("exec in an adopted container: %d %q", code, out)
	}
	c.kill(unix.SIGTERM)
	collect(t, c.reply.Pid)
	if e := c.wait(); e.Code != 42 {
		t.Errorf("exit of an adopted container: %+v", e)
	}
	var want strings.Builder
	for i := range lines {
		want.WriteString(itoa(i+1) + "\n")
	}
	want.WriteString("half\nend\n")
	if got := c.text(); got != want.String() {
		t.Errorf("the log has %d bytes, want %d", len(got), want.Len())
	}
	if _, err := os.Stat(filepath.Join(c.dir, "exit")); err != nil {
		t.Error(err)
	}
}
