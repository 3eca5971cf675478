package test

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	v1 "github.com/berth-project/berth/proto/shim/v1"
)

// census is what a shim holds.
type census struct{ fds, children, mounts int }

func (s *shim) census() census {
	s.t.Helper()
	pid := itoa(s.cmd.Process.Pid)
	fds, err := os.ReadDir("/proc/" + pid + "/fd")
	if err != nil {
		s.t.Fatal(err)
	}
	c := census{fds: len(fds)}
	tasks, _ := os.ReadDir("/proc/" + pid + "/task")
	for _, task := range tasks {
		b, _ := os.ReadFile(filepath.Join("/proc", pid, "task", task.Name(), "children"))
		c.children += len(strings.Fields(string(b)))
		m, _ := os.ReadFile(filepath.Join("/proc", pid, "task", task.Name(), "mountinfo"))
		c.mounts = max(c.mounts, strings.Count(string(m), "\n"))
	}
	return c
}

// TestManyAtOnce starts, execs into, fails to start, and removes many containers at once, and looks for what is left.
func TestManyAtOnce(t *testing.T) {
	s := launchShim(t)
	layer := rootfs(t)
	warm := s.container(spec("true"), layer).run() // opens what is opened once
	warm.wait()
	warm.delete()
	warm.cleanup()
	before := s.census()
	pod := unique("pod")
	s.pod(v1.RunPod{ID: pod, Namespaces: []string{"net", "ipc", "uts"}})
	var wg sync.WaitGroup
	for i := range 24 {
		sp := spec("sh", "-c", "echo $0; read x; exit 5", itoa(i))
		if i%4 == 3 {
			sp.Process.Args = []string{"/nosuch"}
		}
		c := s.container(sp, layer)
		c.start.Pod, c.start.Join, c.start.Stdin = pod, []string{"net", "ipc", "uts"}, true
		wg.Go(func() {
			err := c.try()
			if i%4 == 3 {
				if err == nil {
					t.Error("started what is not there")
				}
				return
			}
			if err != nil {
				t.Error(err)
				return
			}
			var eg sync.WaitGroup
			for range 4 {
				eg.Go(func() {
					id, err := s.exec(c, execProcess("sh", "-c", "exit 9"), nil, nil)
					if err != nil {
						t.Error(err)
						return
					}
					if e := s.exited(c.id, id); e.Code != 9 {
						t.Errorf("exec: %+v", e)
					}
				})
			}
			eg.Wait()
			_, _ = c.out[v1.HandleStdin].WriteString("go\n")
			if e := c.wait(); e.Code != 5 {
				t.Errorf("%+v", e)
			}
			if c.text() != itoa(i)+"\n" {
				t.Errorf("container %d logged %q", i, c.log())
			}
			c.delete()
		})
	}
	wg.Wait()
	s.must(v1.MethodRemovePod, v1.PodRef{ID: pod}, nil, nil)
	var after census
	for range 50 { // the last descriptors are closed after the last answer
		if after = s.census(); after.fds <= before.fds && after.children == 0 && after.mounts == before.mounts {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("before %+v, after %+v", before, after)
}

// TestBackgroundHoldsPipe: something left behind keeps the log pipe open; the exit comes all the same.
func TestExitWithPipeHeldOpen(t *testing.T) {
	s := launchShim(t)
	sp := spec("sh", "-c", "(sleep 3; echo late) & echo early; exit 6")
	sp.Linux.Namespaces = sp.Linux.Namespaces[1:] // the host's pid namespace: the child outlives the container
	sp.Linux.MaskedPaths, sp.Linux.ReadonlyPaths = nil, nil
	c := s.container(sp, rootfs(t)).run()
	start := time.Now()
	if e := c.wait(); e.Code != 6 || time.Since(start) > 2*time.Second {
		t.Errorf("%+v after %v", e, time.Since(start))
	}
	deadline := time.Now().Add(8 * time.Second)
	for c.text() != "early\nlate\n" && time.Now().Before(deadline) {
		time.Sleep(20 * time.Millisecond)
	}
	if c.text() != "early\nlate\n" {
		t.Errorf("log %q", c.log())
	}
	c.delete()
}

// TestSignals: process 1 of a container gets the default dispositions and can be ended by what it does not handle.
func TestSignals(t *testing.T) {
	s := launchShim(t)
	c := s.container(spec("sh", "-c", "trap 'echo term; exit 11' TERM; echo ready; while true; do usleep 1000; done"), rootfs(t)).run()
	for c.text() != "ready\n" {
		time.Sleep(5 * time.Millisecond)
	}
	c.kill(unix.SIGTERM)
	if e := c.wait(); e.Code != 11 || c.text() != "ready\nterm\n" {
		t.Errorf("%+v %q", e, c.log())
	}
}
