// Package test runs the real berth-shim on the real kernel, through its socket, as the daemon does.
package test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	v1 "github.com/berth-project/berth/proto/shim/v1"
)

var binary string // the shim, built once

func TestMain(m *testing.M) {
	os.Exit(func() int {
		if os.Getuid() != 0 {
			fmt.Fprintln(os.Stderr, "these tests need root")
			return 1
		}
		dir, err := os.MkdirTemp("", "berth-shim-test-")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir) //nolint:errcheck // test
		binary = filepath.Join(dir, "berth-shim")
		if err := build(binary, raceEnabled); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}

// build makes a shim. One that looks for races is not static.
func build(to string, race bool) error {
	args, env := []string{"build", "-o", to}, append(os.Environ(), "CGO_ENABLED=0")
	if race {
		args, env = append(args, "-race"), os.Environ()
	}
	cmd := exec.Command("go", append(args, "../cmd/berth-shim")...)
	cmd.Env = env
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build: %w\n%s", err, out)
	}
	return nil
}

// shim is a running shim and a connection to it.
type shim struct {
	t      testing.TB
	dir    string
	cmd    *exec.Cmd
	client *v1.Client
	wg     sync.WaitGroup

	mu     sync.Mutex
	events []v1.Event
	cond   *sync.Cond
}

var serial atomic.Int64

// unique makes an id that no other test uses.
func unique(prefix string) string {
	return fmt.Sprintf("%s-%d-%d", prefix, os.Getpid(), serial.Add(1))
}

// launchShim starts a shim process on a fresh socket in dir.
func launchShim(t testing.TB, env ...string) *shim {
	t.Helper()
	s := &shim{t: t, dir: t.TempDir()}
	s.cond = sync.NewCond(&s.mu)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: s.dir + "/sock", Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	s.cmd = exec.Command(binary, "--dir", s.dir)
	s.cmd.ExtraFiles = []*os.File{f}
	logFile, err := os.Create(s.dir + "/log")
	if err != nil {
		t.Fatal(err)
	}
	s.cmd.Stderr = logFile
	s.cmd.Env = append(os.Environ(), env...)
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	_ = l.Close()
	_ = logFile.Close()
	s.connect()
	t.Cleanup(func() {
		s.client.Close()
		s.wg.Wait()
		_ = s.cmd.Process.Kill()
		_, _ = s.cmd.Process.Wait()
		if b, _ := os.ReadFile(s.dir + "/log"); len(b) > 0 {
			t.Logf("shim log:\n%s", b)
			if strings.Contains(string(b), "DATA RACE") {
				t.Error("data race in the shim")
			}
		}
	})
	return s
}

func (s *shim) connect() {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, err := v1.Dial(ctx, s.dir+"/sock", func(e v1.Event) {
		s.mu.Lock()
		s.events = append(s.events, e)
		s.mu.Unlock()
		s.cond.Broadcast()
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.client = c
	s.wg.Go(func() { _ = c.Run() })
	var r v1.HelloReply
	s.must(v1.MethodHello, v1.Hello{Version: v1.Version}, nil, &r)
}

// call makes a request.
func (s *shim) call(method string, req any, fds []*os.File, reply any) ([]*os.File, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return s.client.Call(ctx, method, req, fds, reply)
}

func (s *shim) must(method string, req any, fds []*os.File, reply any) []*os.File {
	s.t.Helper()
	out, err := s.call(method, req, fds, reply)
	if err != nil {
		s.t.Fatalf("%s: %v", method, err)
	}
	return out
}

// exited waits for the end of a container or exec.
func (s *shim) exited(container, exec string) v1.Exit {
	s.t.Helper()
	deadline := time.Now().Add(15 * time.Second)
	timer := time.AfterFunc(15*time.Second, s.cond.Broadcast)
	defer timer.Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		for _, e := range s.events {
			var x v1.Exited
			if e.Name == v1.EventExited && json.Unmarshal(e.Body, &x) == nil && x.Container == container && x.Exec == exec {
				return x.Exit
			}
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("no exit of %s %s within 15 s", container, exec)
		}
		s.cond.Wait()
	}
}

// rootfs makes a root file system of busybox.
func rootfs(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "layer")
	for _, d := range []string{"bin", "etc", "tmp", "proc", "sys", "dev", "root", "var"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "bin/busybox"), b, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, a := range strings.Fields("sh cat ls echo sleep true false id mount umount ps kill grep readlink stat head tail wc yes mkdir touch env pwd hostname ip od dd seq usleep printf test chmod ln rm stty tty cut") {
		if err := os.Link(filepath.Join(dir, "bin/busybox"), filepath.Join(dir, "bin", a)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "etc/passwd"), []byte("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

func defaultCaps() []string {
	return []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
		"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
	}
}

// spec is what a CRI daemon makes for an ordinary container.
func spec(args ...string) *specs.Spec {
	caps := defaultCaps()
	return &specs.Spec{
		Version: "1.2.0",
		Root:    &specs.Root{Path: "rootfs"},
		Process: &specs.Process{
			Args: args, Cwd: "/", Env: []string{"PATH=/usr/bin:/bin", "HOME=/root"}, NoNewPrivileges: true,
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"}},
		},
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace},
				{Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace},
				{Type: specs.MountNamespace},
				{Type: specs.NetworkNamespace},
				{Type: specs.CgroupNamespace},
			},
			MaskedPaths:   []string{"/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
}

// ctr is a container of a test.
type ctr struct {
	s     *shim
	id    string
	dir   string // logs, upper, exit file
	start v1.Start
	fds   []*os.File // cgroups
	reply v1.StartReply
	out   map[string]*os.File
}

// container prepares a container; change start before run.
func (s *shim) container(sp *specs.Spec, layer string) *ctr {
	s.t.Helper()
	c := &ctr{s: s, id: unique("c"), dir: s.t.TempDir(), out: map[string]*os.File{}}
	for _, d := range []string{"upper", "work"} {
		if err := os.Mkdir(filepath.Join(c.dir, d), 0o755); err != nil {
			s.t.Fatal(err)
		}
	}
	c.start = v1.Start{
		Container: v1.Container{
			ID: c.id, LogDir: c.dir, LogName: "0.log", ExitFile: filepath.Join(c.dir, "exit"), Terminal: sp.Process.Terminal,
		},
		Rootfs: v1.Rootfs{Lower: []string{layer}, Upper: c.dir + "/upper", Work: c.dir + "/work"},
	}
	c.setSpec(sp)
	return c
}

func (c *ctr) setSpec(sp *specs.Spec) {
	c.s.t.Helper()
	b, err := json.Marshal(sp)
	if err != nil {
		c.s.t.Fatal(err)
	}
	c.start.Spec = b
}

// try starts the container.
func (c *ctr) try() error {
	fds, err := c.s.call(v1.MethodStart, &c.start, c.fds, &c.reply)
	if err != nil {
		return err
	}
	for i, h := range c.reply.Handles {
		c.out[h] = fds[i]
	}
	c.s.t.Cleanup(c.cleanup)
	return nil
}

func (c *ctr) run() *ctr {
	c.s.t.Helper()
	if err := c.try(); err != nil {
		c.s.t.Fatalf("start: %v", err)
	}
	return c
}

func (c *ctr) cleanup() {
	if p := c.out[v1.HandlePidfd]; p != nil {
		_ = unix.PidfdSendSignal(int(p.Fd()), unix.SIGKILL, nil, 0)
	}
	for _, f := range c.out {
		_ = f.Close()
	}
}

// wait is the container's exit.
func (c *ctr) wait() v1.Exit {
	c.s.t.Helper()
	return c.s.exited(c.id, "")
}

// log is the text of the log file with the times removed.
func (c *ctr) log() string {
	c.s.t.Helper()
	b, err := os.ReadFile(filepath.Join(c.dir, "0.log"))
	if err != nil {
		c.s.t.Fatal(err)
	}
	var out strings.Builder
	for line := range strings.Lines(string(b)) {
		if !strings.HasSuffix(line, "\n") {
			break // it is being written
		}
		if len(line) < 31 || line[30] != ' ' {
			c.s.t.Fatalf("bad log line %q", line)
		}
		out.WriteString(line[31:])
	}
	return out.String()
}

// text is the container's standard output as it was written.
func (c *ctr) text() string {
	c.s.t.Helper()
	var out strings.Builder
	for line := range strings.Lines(c.log()) {
		if v, ok := strings.CutPrefix(line, "stdout F "); ok {
			out.WriteString(v)
		} else if v, ok := strings.CutPrefix(line, "stdout P "); ok {
			out.WriteString(strings.TrimSuffix(v, "\n"))
		}
	}
	return out.String()
}

func (c *ctr) delete() {
	c.s.t.Helper()
	c.s.must(v1.MethodDelete, v1.ContainerRef{ID: c.id}, nil, nil)
}
