package mps

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain is also Self: the process that becomes a daemon.
func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == Verb {
		fmt.Fprintln(os.Stderr, Become(os.Args[2], os.Args[3]))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// control stands for nvidia-cuda-mps-control, which cannot be had without a driver: with -f it makes its socket's
// place, writes to its /dev/shm and stays; without, it appends its input to a file, unless the daemon is gone.
const control = `
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static char path[4096];
static char *at(const char *name) { snprintf(path, sizeof path, "%s/%s", getenv("CUDA_MPS_PIPE_DIRECTORY"), name); return path; }
int main(int argc, char **argv) {
	FILE *f; int pid; char line[256];
	if (argc > 1 && !strcmp(argv[1], "-f")) {
		if (!(f = fopen("/dev/shm/mine", "w"))) { perror("/dev/shm"); return 2; }
		fprintf(f, "%s", getenv("CUDA_VISIBLE_DEVICES")); fclose(f);
		if (access(at("refuse"), F_OK) == 0) { fprintf(stderr, "refused\n"); return 3; }
		f = fopen(at("pid"), "w"); fprintf(f, "%d", getpid()); fclose(f);
		for (;;) pause();
	}
	if (!(f = fopen(at("pid"), "r")) || fscanf(f, "%d", &pid) != 1 || kill(pid, 0)) { fprintf(stderr, "Cannot find MPS control daemon process\n"); return 1; }
	fclose(f);
	f = fopen(at("commands"), "a");
	while (fgets(line, sizeof line, stdin)) fputs(line, f);
	return fclose(f);
}
`

func supervisor(t *testing.T) (*Supervisor, string) {
	t.Helper()
	dir := t.TempDir()
	src, prog := filepath.Join(dir, "control.c"), filepath.Join(dir, "nvidia-cuda-mps-control")
	if err := os.WriteFile(src, []byte(control), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("gcc", "-o", prog, src).CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, out)
	}
	s := New(Config{
		Self: "/proc/self/exe", Control: prog, Dir: filepath.Join(dir, "mps"), Check: 20 * time.Millisecond, Answer: time.Second, Pause: 10 * time.Millisecond,
		Log: slog.New(slog.DiscardHandler), Changed: func() {},
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if left, err := filepath.Glob(filepath.Join(s.cfg.Dir, "*")); err != nil || len(left) > 0 {
			t.Error("left:", left, err)
		}
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil || strings.Contains(string(mounts), s.cfg.Dir) {
			t.Error("a mount is left", err)
		}
	})
	return s, s.cfg.Dir
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("waiting until", what)
		}
	}
}

func read(t *testing.T, parts ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(parts...))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func pid(t *testing.T, dir, gpu string) int {
	t.Helper()
	var n int
	if _, err := fmt.Sscan(read(t, dir, gpu, "pipe/pid"), &n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestLife(t *testing.T) {
	s, dir := supervisor(t)
	if s.Reason("GPU-a") == "" {
		t.Error("it serves before it runs")
	}
	s.Set([]GPU{{UUID: "GPU-a", Memory: 20 << 30, Replicas: 4}, {UUID: "GPU-b", Memory: 1 << 30, Replicas: 2}})
	await(t, "both serve", func() bool { return s.Reason("GPU-a")+s.Reason("GPU-b") == "" })
	if got := read(t, dir, "GPU-a/pipe/commands"); !strings.HasPrefix(got, "set_default_device_pinned_mem_limit 0 20480M\nset_default_active_thread_percentage 25\n") {
		t.Error(got)
	}
	// each daemon's /dev/shm is its own, and not the machine's
	if a, b := read(t, dir, "GPU-a/shm/mine"), read(t, dir, "GPU-b/shm/mine"); a != "GPU-a" || b != "GPU-b" {
		t.Error(a, b)
	}
	if _, err := os.Stat("/dev/shm/mine"); !errors.Is(err, os.ErrNotExist) {
		t.Error("the machine's /dev/shm was written to:", err)
	}
	first := pid(t, dir, "GPU-a")
	if err := unix.Kill(first, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	await(t, "the death is noticed", func() bool { return s.Reason("GPU-a") != "" })
	await(t, "another one serves", func() bool { return s.Reason("GPU-a") == "" && pid(t, dir, "GPU-a") != first })
	if s.Reason("GPU-b") != "" {
		t.Error("the other daemon was touched")
	}
	other := pid(t, dir, "GPU-b")
	s.Set([]GPU{{UUID: "GPU-a", Memory: 20 << 30, Replicas: 4}})
	await(t, "the daemon of the GPU that is no longer shared ends", func() bool { return errors.Is(unix.Kill(other, 0), unix.ESRCH) })
	await(t, "its directory goes", func() bool { _, err := os.Stat(filepath.Join(dir, "GPU-b")); return errors.Is(err, os.ErrNotExist) })
}

// TestRefusal: a daemon that will not start says why, and is tried again.
func TestRefusal(t *testing.T) {
	s, dir := supervisor(t)
	if err := os.MkdirAll(filepath.Join(dir, "GPU-a/pipe"), 0o755); err != nil {
		t.Fatal(err)
	}
	refuse := filepath.Join(dir, "GPU-a/pipe/refuse")
	if err := os.WriteFile(refuse, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s.Set([]GPU{{UUID: "GPU-a", Memory: 1 << 30, Replicas: 2}})
	await(t, "its words are the reason", func() bool { return strings.Contains(s.Reason("GPU-a"), "refused") })
	if err := os.Remove(refuse); err != nil {
		t.Fatal(err)
	}
	await(t, "it serves", func() bool { return s.Reason("GPU-a") == "" })
}

// TestUmask: clients of any user may enter, although the service's umask keeps all others out of what it makes.
func TestUmask(t *testing.T) {
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	s, dir := supervisor(t)
	s.Set([]GPU{{UUID: "GPU-a", Memory: 1 << 30, Replicas: 2}})
	await(t, "it serves", func() bool { return s.Reason("GPU-a") == "" })
	for name, want := range map[string]os.FileMode{"pipe": 0o755 | os.ModeDir, "pipe/pid": 0o644, "shm": 0o777 | os.ModeDir | os.ModeSticky} {
		fi, err := os.Stat(filepath.Join(dir, "GPU-a", name))
		if err != nil {
			t.Fatal(err)
		}
		if fi.Mode() != want {
			t.Errorf("%s: %v, want %v", name, fi.Mode(), want)
		}
	}
}

// TestUnit: the service's mounts are the node's, or no container would have the shared memory of its daemon.
func TestUnit(t *testing.T) {
	unit := read(t, "../../../deploy/gpu/berth-gpu.service")
	if !strings.Contains(unit, "ExecStart=/usr/local/bin/berth-gpu ") {
		t.Fatal(unit)
	}
	for line := range strings.Lines(unit) {
		for _, own := range []string{ // systemd.exec(5): each gives the service a mount namespace of its own
			"Protect", "Private", "ReadWritePaths", "ReadOnlyPaths", "InaccessiblePaths", "ExecPaths", "NoExecPaths", "Bind", "TemporaryFileSystem",
			"MountFlags", "MountAPIVFS", "MountImages", "RootDirectory", "RootImage", "ExtensionImages", "DynamicUser",
		} {
			if strings.HasPrefix(line, own) {
				t.Errorf("%q", line)
			}
		}
	}
}

func TestNoProgram(t *testing.T) {
	s, _ := supervisor(t)
	s.cfg.Control = "/nonexistent/nvidia-cuda-mps-control"
	s.Set([]GPU{{UUID: "GPU-a", Memory: 1 << 30, Replicas: 2}})
	await(t, "it says what is missing", func() bool { return strings.Contains(s.Reason("GPU-a"), "the driver's own program") })
}

// warnings counts what is logged, none of which may be there where daemons follow one another in peace.
type warnings struct {
	mu  sync.Mutex
	all []string
}

func (w *warnings) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = append(w.all, string(p))
	return len(p), nil
}

// TestAnotherShare: a GPU whose shares change has one daemon after the other, never two over one directory; in between
// nothing serves, and a GPU that is shared no more is not said to serve.
func TestAnotherShare(t *testing.T) {
	s, dir := supervisor(t)
	w := &warnings{}
	s.cfg.Log = slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelWarn}))
	s.cfg.Check = 200 * time.Millisecond // a busy machine takes its time to start a process
	for i := range 4 {
		replicas := 2 << (i % 2)
		s.Set([]GPU{{UUID: "GPU-a", Memory: 20 << 30, Replicas: replicas}})
		want := fmt.Sprintf("set_default_active_thread_percentage %d\n", 100/replicas)
		await(t, "the new daemon serves", func() bool {
			b, err := os.ReadFile(filepath.Join(dir, "GPU-a/pipe/commands"))
			return s.Reason("GPU-a") == "" && err == nil && strings.Contains(string(b), want)
		})
		own := pid(t, dir, "GPU-a")
		time.Sleep(2 * s.cfg.Check)
		if s.Reason("GPU-a") != "" || pid(t, dir, "GPU-a") != own || read(t, dir, "GPU-a/shm/mine") != "GPU-a" {
			t.Fatalf("change %d: %q", i, s.Reason("GPU-a"))
		}
	}
	s.Set(nil)
	await(t, "its directory goes", func() bool { _, err := os.Stat(filepath.Join(dir, "GPU-a")); return errors.Is(err, os.ErrNotExist) })
	await(t, "nobody says that it serves", func() bool { return s.Reason("GPU-a") != "" })
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.all) > 0 {
		t.Error(w.all)
	}
}
