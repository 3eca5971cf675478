package test

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/internal/atomicfile"
	"github.com/berth-project/berth/proto/errs"
	v1 "github.com/berth-project/berth/proto/shim/v1"
)

func TestHelloWorld(t *testing.T) {
	s := launchShim(t)
	c := s.container(spec("sh", "-c", "echo hello; echo err >&2; cat /proc/self/mountinfo; exit 7"), rootfs(t)).run()
	e := c.wait()
	if e.Code != 7 || !strings.HasPrefix(c.text(), "hello\n") || !strings.Contains(c.log(), "stderr F err\n") {
		t.Errorf("exit %+v, log %q", e, c.log())
	}
	if !strings.Contains(c.text(), " /sys/fs/cgroup/memory ro,") {
		t.Errorf("no memory cgroup in the container:\n%s", c.text())
	}
	b, err := atomicfile.ReadSealed(c.start.ExitFile)
	var rec v1.Exit
	if err != nil || json.Unmarshal(b, &rec) != nil || rec.Code != 7 {
		t.Errorf("exit record %s, %v", b, err)
	}
	if err := c.try(); errs.Of(err) != errs.AlreadyExists {
		t.Errorf("second start: %v", err)
	}
	c.delete()
	c.delete()
}

func TestExec(t *testing.T) {
	s := launchShim(t)
	c := s.container(spec("sleep", "100"), rootfs(t)).run()
	out, code := s.execute(c, "sh", "-c", "echo from exec; cat /proc/1/cmdline; exit 3")
	if code != 3 || out != "from exec\nsleep\x00100\x00" {
		t.Errorf("exec: code %d, %q", code, out)
	}
	_, err := s.exec(c, &specs.Process{Args: []string{"nosuch"}, Cwd: "/", Env: []string{"PATH=/bin"}}, nil, nil)
	if err == nil || !strings.Contains(err.Error(), `exec: "nosuch": executable file not found in $PATH`) {
		t.Errorf("exec of what is not there: %v", err)
	}
	c.kill(unix.SIGKILL)
	if e := c.wait(); e.Signal != 9 || e.Code != 137 {
		t.Errorf("exit %+v", e)
	}
	if _, err := s.exec(c, execProcess("true"), nil, nil); errs.Of(err) != errs.FailedPrecondition {
		t.Errorf("exec in an ended container: %v", err)
	}
}

func (c *ctr) kill(sig unix.Signal) {
	c.s.t.Helper()
	if err := unix.PidfdSendSignal(int(c.out[v1.HandlePidfd].Fd()), sig, nil, 0); err != nil {
		c.s.t.Fatal(err)
	}
}

func execProcess(args ...string) *specs.Process {
	return &specs.Process{Args: args, Cwd: "/", Env: []string{"PATH=/usr/bin:/bin"}, NoNewPrivileges: true}
}

// exec starts a process in c with the given streams.
func (s *shim) exec(c *ctr, p *specs.Process, names []string, files []*os.File) (id string, err error) {
	s.t.Helper()
	b, err := json.Marshal(p)
	if err != nil {
		s.t.Fatal(err)
	}
	id = unique("e")
	req := v1.Exec{Container: c.id, ID: id, Process: b, Stdio: names, Cgroups: c.start.Cgroups, Seccomp: c.start.Seccomp}
	var reply v1.ExecReply
	fds, err := s.call(v1.MethodExec, req, append(append([]*os.File{}, c.fds...), files...), &reply)
	for _, f := range fds {
		_ = f.Close()
	}
	return id, err
}

// execute runs a command in c and returns its output and exit code.
func (s *shim) execute(c *ctr, args ...string) (string, int) {
	s.t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		s.t.Fatal(err)
	}
	defer r.Close() //nolint:errcheck // test
	id, err := s.exec(c, execProcess(args...), []string{"stdout", "stderr"}, []*os.File{w, w})
	_ = w.Close()
	if err != nil {
		s.t.Fatalf("exec: %v", err)
	}
	_ = r.SetReadDeadline(time.Now().Add(10 * time.Second))
	out, err := io.ReadAll(r)
	if err != nil {
		s.t.Fatalf("exec output: %v", err)
	}
	return string(out), s.exited(c.id, id).Code
}

func TestTerminal(t *testing.T) {
	s := launchShim(t)
	sp := spec("sh", "-c", "tty; stty size; echo x > /dev/console; read l; echo got $l; exit 4")
	sp.Process.Terminal = true
	sp.Process.ConsoleSize = &specs.Box{Height: 33, Width: 99}
	c := s.container(sp, rootfs(t)).run()
	console := c.out[v1.HandleConsole]
	if console == nil {
		t.Fatalf("handles %v", c.reply.Handles)
	}
	if _, err := console.Write([]byte("input\n")); err != nil {
		t.Fatal(err)
	}
	if e := c.wait(); e.Code != 4 {
		t.Errorf("exit %+v", e)
	}
	// the echo of the input comes when it likes
	if got := strings.Replace(c.text(), "input\n", "", 1); got != "/dev/pts/0\n33 99\nx\ngot input\n" {
		t.Errorf("terminal said %q", got)
	}
}

func TestAttachAndStdinOnce(t *testing.T) {
	s := launchShim(t)
	c := s.container(spec("cat"), rootfs(t))
	c.start.Stdin, c.start.StdinOnce = true, true
	c.run()
	_ = c.out[v1.HandleStdin].Close() // the daemon's duplicate
	inR, inW, _ := os.Pipe()
	outR, outW, _ := os.Pipe()
	s.must(v1.MethodAttach, v1.Attach{Container: c.id, Stdio: []string{"stdin", "stdout"}}, []*os.File{inR, outW}, nil)
	_ = inR.Close()
	_ = outW.Close()
	_, _ = inW.WriteString("through the container\n")
	_ = inW.Close()
	b, err := io.ReadAll(outR)
	if err != nil || string(b) != "through the container\n" {
		t.Errorf("attached output %q, %v", b, err)
	}
	if e := c.wait(); e.Code != 0 {
		t.Errorf("exit %+v", e)
	}
	if c.text() != "through the container\n" {
		t.Errorf("log %q", c.log())
	}
}

func TestReopenLog(t *testing.T) {
	s := launchShim(t)
	c := s.container(spec("sh", "-c", "i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done"), rootfs(t)).run()
	var parts []string
	for i := range 5 {
		old := filepath.Join(c.dir, "0.log."+string(rune('a'+i)))
		if err := os.Rename(filepath.Join(c.dir, "0.log"), old); err != nil {
			t.Fatal(err)
		}
		s.must(v1.MethodReopenLog, v1.ContainerRef{ID: c.id}, nil, nil)
		if _, err := os.Stat(filepath.Join(c.dir, "0.log")); err != nil {
			t.Error(err)
		}
		parts = append(parts, old)
	}
	c.wait()
	var all strings.Builder
	for _, p := range append(parts, filepath.Join(c.dir, "0.log")) {
		b, _ := os.ReadFile(p)
		for line := range strings.Lines(string(b)) {
			all.WriteString(line[40:])
		}
	}
	var want strings.Builder
	for i := range 3000 {
		want.WriteString("line ")
		want.WriteString(itoa(i))
		want.WriteString("\n")
	}
	if all.String() != want.String() {
		t.Errorf("rotated logs differ: %d bytes, want %d", all.Len(), want.Len())
	}
}

func itoa(i int) string {
	b, _ := json.Marshal(i)
	return string(b)
}

func TestPodNamespaces(t *testing.T) {
	s := launchShim(t)
	id := unique("pod")
	req := v1.RunPod{ID: id, Namespaces: []string{"net", "ipc", "uts"}, Hostname: "berth-pod", Sysctls: map[string]string{
		"net.ipv4.ip_unprivileged_port_start": "81", "kernel.shmmax": "123456789",
	}}
	var reply v1.RunPodReply
	fds := s.must(v1.MethodRunPod, req, nil, &reply)
	if len(fds) != 3 || len(reply.Namespaces) != 3 {
		t.Fatalf("reply %+v with %d descriptors", reply, len(fds))
	}
	sp := spec("sh", "-c", "hostname; cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shmmax; ip link show lo")
	for _, name := range []string{"one", "two"} {
		c := s.container(sp, rootfs(t))
		c.start.Pod, c.start.Join = id, []string{"net", "ipc", "uts"}
		c.run().wait()
		if got := c.text(); !strings.HasPrefix(got, "berth-pod\n81\n123456789\n") || !strings.Contains(got, "LOOPBACK,UP") {
			t.Errorf("container %s: %q", name, got)
		}
		c.delete()
	}
	s.must(v1.MethodRemovePod, v1.PodRef{ID: id}, nil, nil)
	for _, f := range fds {
		_ = f.Close()
	}
}
