package test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	v1 "github.com/berth-project/berth/proto/shim/v1"
)

// withCgroups gives the container cgroups of its own in every hierarchy, and removes them at the end.
func (c *ctr) withCgroups() *ctr {
	t := c.s.t
	t.Helper()
	entries, err := os.ReadDir("/sys/fs/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	mk := func(dir string) string {
		dir = filepath.Join(dir, "berth-shim-test-"+c.id)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			c.cleanup()
			var err error
			for range 200 {
				if err = unix.Rmdir(dir); err == nil || err == unix.ENOENT {
					return
				}
				time.Sleep(10 * time.Millisecond)
			}
			t.Errorf("leaked cgroup %s: %v", dir, err)
		})
		return dir
	}
	var v1s []*os.File
	for _, e := range entries {
		dir := filepath.Join("/sys/fs/cgroup", e.Name())
		if e.Name() == "unified" {
			f, err := os.Open(mk(dir))
			if err != nil {
				t.Fatal(err)
			}
			c.fds, c.start.Cgroups.Unified = append(c.fds, f), true
			continue
		}
		if _, err := os.Stat(dir + "/tasks"); err != nil {
			continue
		}
		d := mk(dir)
		if e.Name() == "cpuset" {
			for _, k := range []string{"cpuset.cpus", "cpuset.mems"} {
				b, _ := os.ReadFile(filepath.Join(dir, k))
				if err := os.WriteFile(filepath.Join(d, k), b, 0); err != nil {
					t.Fatal(err)
				}
			}
		}
		f, err := os.OpenFile(d+"/tasks", os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		v1s = append(v1s, f)
	}
	// the unified one comes first
	c.fds = append(c.fds, v1s...)
	c.start.Cgroups.V1 = len(v1s)
	t.Cleanup(func() {
		for _, f := range c.fds {
			_ = f.Close()
		}
	})
	return c
}

func (c *ctr) cgroup(controller, file string) string {
	return filepath.Join("/sys/fs/cgroup", controller, "berth-shim-test-"+c.id, file)
}

func TestCgroups(t *testing.T) {
	s := launchShim(t)
	c := s.container(spec("sleep", "100"), rootfs(t)).withCgroups().run()
	out, _ := s.execute(c, "sh", "-c", "cat /proc/1/cgroup /proc/self/cgroup; ls /sys/fs/cgroup/memory/memory.limit_in_bytes")
	for line := range strings.Lines(out) {
		if !strings.HasSuffix(line, ":/\n") && !strings.HasSuffix(line, "in_bytes\n") {
			t.Errorf("not the root of its cgroup namespace: %s", line)
		}
	}
	b, err := os.ReadFile("/proc/" + itoa(c.reply.Pid) + "/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if !strings.HasSuffix(line, "/berth-shim-test-"+c.id+"\n") {
			t.Errorf("the container is in %s", line)
		}
	}
	b, _ = os.ReadFile("/proc/" + itoa(s.cmd.Process.Pid) + "/cgroup")
	if strings.Contains(string(b), c.id) {
		t.Errorf("the shim did not come home:\n%s", b)
	}
	tasks, _ := os.ReadFile(c.cgroup("memory", "tasks"))
	if strings.TrimSpace(string(tasks)) != itoa(c.reply.Pid) {
		t.Errorf("tasks in the container's cgroup: %q, want only %d", tasks, c.reply.Pid)
	}
}

func TestOOMKilled(t *testing.T) {
	s := launchShim(t)
	c := s.container(spec("sh", "-c", "dd if=/dev/zero of=/dev/null bs=64M count=4"), rootfs(t)).withCgroups()
	c.start.OOMFile = c.cgroup("memory", "memory.oom_control")
	for _, f := range []string{"memory.limit_in_bytes", "memory.memsw.limit_in_bytes"} {
		if err := os.WriteFile(c.cgroup("memory", f), []byte("16M"), 0); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	c.run()
	if e := c.wait(); !e.OOMKilled || e.Code != 137 {
		t.Errorf("exit %+v, log %s", e, c.log())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	oom := false
	for _, e := range s.events {
		var o v1.OOM
		oom = oom || e.Name == v1.EventOOM && json.Unmarshal(e.Body, &o) == nil && o.Container == c.id
	}
	if !oom {
		t.Error("no OOM event")
	}
}
