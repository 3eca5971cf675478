package shims

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/cri/internal/cgroup"
	v1 "github.com/berth-project/berth/proto/shim/v1"
)

// supervisor is the real berth-shim, built once.
var supervisor string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "berth-shims-test-")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir) //nolint:errcheck // test
		supervisor = filepath.Join(dir, "berth-shim")
		cmd := exec.Command("go", "build", "-o", supervisor, "github.com/berth-project/berth/shim/cmd/berth-shim")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build berth-shim: %v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

// bench is a pool on a part of the machine that is its own. At its end nothing may be left.
type bench struct {
	*Pool
	t          *testing.T
	dir, group string
	groups     *cgroup.Layout
	layer      string
	ends       chan v1.Exited
	fds        int
}

var serial atomic.Int64

func newBench(t *testing.T) *bench {
	t.Helper()
	groups, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{
		t: t, dir: t.TempDir(), groups: groups, group: fmt.Sprintf("/berth-shims-test-%d-%d", os.Getpid(), serial.Add(1)),
		ends: make(chan v1.Exited, 64), fds: descriptors(t),
	}
	b.layer = filepath.Join(b.dir, "layer")
	busybox, err := os.ReadFile("/bin/busybox")
	for _, d := range []string{"bin", "proc", "sys", "dev"} {
		err = errors.Join(err, os.MkdirAll(filepath.Join(b.layer, d), 0o755))
	}
	err = errors.Join(err, os.WriteFile(filepath.Join(b.layer, "bin/busybox"), busybox, 0o755))
	if err != nil {
		t.Fatal(err)
	}
	b.Pool = b.pool(supervisor)
	t.Cleanup(b.end)
	return b
}

func descriptors(t *testing.T) int {
	t.Helper()
	runtime.GC() // files that nobody refers to any more close themselves
	ents, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(ents)
}

// pool is a daemon's view; a second one on the same directory is the next daemon's.
func (b *bench) pool(binary string) *Pool {
	return New(Config{Binary: binary, Dir: filepath.Join(b.dir, "shims"), PodsPer: 2, Cgroups: b.groups, Group: b.group},
		slog.New(slog.NewTextHandler(b.t.Output(), nil)), func(x v1.Exited) { b.ends <- x }, func(v1.OOM) {})
}

func (b *bench) end() {
	b.Close()
	if err := b.groups.Kill(b.group); err != nil {
		b.t.Error(err)
	}
	for range 200 {
		if len(b.groups.Pids(b.group)) == 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := b.groups.Remove(b.group); err != nil {
		b.t.Errorf("cgroups are left: %v", err)
	}
	if m, _ := os.ReadFile("/proc/self/mountinfo"); strings.Contains(string(m), b.dir) {
		b.t.Error("mounts are left")
	}
	for range 100 { // the goroutines that reap close theirs a moment later
		if descriptors(b.t) <= b.fds {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	b.t.Errorf("%d descriptors, %d before", descriptors(b.t), b.fds)
}

func (b *bench) makePod(id string) {
	b.t.Helper()
	if err := b.RunPod(b.t.Context(), v1.RunPod{ID: id, Namespaces: []string{"net", "ipc", "uts"}}, nil); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) request(pod, id string, args ...string) v1.Start {
	b.t.Helper()
	s := &specs.Spec{
		Version: specs.Version, Root: &specs.Root{Path: "rootfs"},
		Process: &specs.Process{Args: append([]string{"/bin/busybox"}, args...), Cwd: "/", Env: []string{"PATH=/bin"}, Capabilities: &specs.LinuxCapabilities{}},
		Mounts:  []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc"}},
		Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{
			{Type: specs.MountNamespace}, {Type: specs.PIDNamespace}, {Type: specs.NetworkNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace},
		}},
	}
	raw, err := json.Marshal(s)
	if err != nil {
		b.t.Fatal(err)
	}
	dir := filepath.Join(b.dir, "containers", id)
	for _, d := range []string{"upper", "work"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			b.t.Fatal(err)
		}
	}
	return v1.Start{
		Container: v1.Container{ID: id, Pod: pod, LogDir: dir, LogName: "0.log", ExitFile: filepath.Join(dir, "exit")},
		Spec:      raw, Join: []string{"net", "ipc", "uts"},
		Rootfs: v1.Rootfs{Lower: []string{b.layer}, Upper: filepath.Join(dir, "upper"), Work: filepath.Join(dir, "work")},
	}
}

func (b *bench) handles(id string) *cgroup.Handles {
	b.t.Helper()
	group := b.group + "/pods/" + id
	if err := b.groups.Ensure(group); err != nil {
		b.t.Fatal(err)
	}
	h, err := b.groups.Open(group, group)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(h.Close)
	return h
}

func (b *bench) startContainer(pod, id string, args ...string) Started {
	b.t.Helper()
	h := b.handles(id)
	defer h.Close()
	st, err := b.Start(b.t.Context(), b.request(pod, id, args...), h)
	if err != nil {
		b.t.Fatal(err)
	}
	return st
}

func (b *bench) awaitEnd(id string) v1.Exit {
	b.t.Helper()
	select {
	case x := <-b.ends:
		if x.Container != id {
			b.t.Fatalf("%s ended, not %s", x.Container, id)
		}
		return x.Exit
	case <-time.After(10 * time.Second):
		b.t.Fatalf("no word of the end of %s", id)
	}
	return v1.Exit{}
}

// clear takes a container and its pod away.
func (b *bench) clear(pod, id string) {
	b.t.Helper()
	if err := b.Signal(id, unix.SIGKILL); err == nil && !b.Dead(id) {
		b.awaitEnd(id)
	}
	if err := errors.Join(b.Delete(b.t.Context(), id), b.RemovePod(b.t.Context(), pod)); err != nil {
		b.t.Error(err)
	}
}

// pid is the process of the shim that has the pod.
func (b *bench) shim(pod string) *shim {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.pods[pod].shim
}

func (b *bench) pid(s *shim) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pid
}
