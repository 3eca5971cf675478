package manager

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// lab is a directory in which berth-gpu runs with a profile that the test changes.
type lab struct {
	t       *testing.T
	dir     string
	profile string
	config  string
	args    []string
	cmd     *exec.Cmd
	log     *buffer
	done    chan struct{}
}

type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

const eight = `origin: test
driver: {version: 580.159.04, cuda: "13.0"}
majors: {nvidia: 195, uvm: 510, caps: 511}
gpus:
  - {count: 8, product: NVIDIA H100 80GB HBM3, memory: 85520809984, compute: "9.0"}
fabric: {path: numa, nvlinks: 18}
`

const settings = `root = %q
state = %q
debug_socket = %q
log_level = "debug"
%s
[driver]
dev_view = %q
[cdi]
dir = %q
[health]
poll_ms = 200
timeout_ms = 400
hold_down_ms = 100
max_hold_down_ms = 100
%s`

func newLab(t *testing.T, profile, top, more string, args ...string) *lab {
	t.Helper()
	dir, err := os.MkdirTemp("", "gpu") // a test's own name is too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	l := &lab{t: t, dir: dir, args: args}
	l.profile, l.config = filepath.Join(l.dir, "profile.yaml"), filepath.Join(l.dir, "gpu.toml")
	l.setProfile(profile)
	text := fmt.Sprintf(settings, filepath.Join(l.dir, "root"), filepath.Join(l.dir, "run"), filepath.Join(l.dir, "run/debug.sock"), top,
		filepath.Join(l.dir, "dev"), l.cdi(), more)
	if err := os.WriteFile(l.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"device-plugins", "plugins_registry"} {
		if err := os.MkdirAll(filepath.Join("/var/lib/kubelet", d), 0o750); err != nil {
			t.Fatal(err)
		}
	}
	labs++
	t.Cleanup(func() {
		l.stop()
		labs--
		l.clean()
		if labs == 0 {
			wipe(t)
		}
	})
	return l
}

func (l *lab) cdi() string { return filepath.Join(l.dir, "cdi") }

func (l *lab) setProfile(text string) {
	l.t.Helper()
	l.replace(l.profile, text)
}

func (l *lab) setConfig(text string) {
	l.t.Helper()
	l.replace(l.config, text)
}

// replace writes a file as editors do.
func (l *lab) replace(file, text string) {
	l.t.Helper()
	if err := os.WriteFile(file+".tmp", []byte(text), 0o600); err != nil {
		l.t.Fatal(err)
	}
	if err := os.Rename(file+".tmp", file); err != nil {
		l.t.Fatal(err)
	}
}

// start runs berth-gpu.
func (l *lab) start() {
	l.t.Helper()
	bin := os.Getenv("BERTH_BIN")
	if bin == "" {
		l.t.Fatal("BERTH_BIN says where berth-gpu is: run make conformance-gpu")
	}
	l.cmd = exec.Command(filepath.Join(bin, "berth-gpu"), append([]string{"--config", l.config, "--fake", l.profile}, l.args...)...)
	l.log = &buffer{}
	l.cmd.Stdout, l.cmd.Stderr = l.log, l.log
	if err := l.cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	l.done = make(chan struct{})
	go func(c *exec.Cmd, done chan struct{}) { // ends with the process
		_ = c.Wait()
		close(done)
	}(l.cmd, l.done)
}

func (l *lab) signal(s syscall.Signal) {
	if l.cmd != nil {
		_ = l.cmd.Process.Signal(s)
		<-l.done
	}
}

func (l *lab) kill() { l.signal(syscall.SIGKILL) }

// stop ends berth-gpu as an operator does, and fails the test if it does not end well.
func (l *lab) stop() {
	if l.cmd == nil {
		return
	}
	select {
	case <-l.done:
	default:
		l.signal(syscall.SIGTERM)
		if code := l.cmd.ProcessState.ExitCode(); code != 0 {
			l.t.Errorf("berth-gpu ended with %d:\n%s", code, l.log)
		}
	}
	if l.t.Failed() {
		s := l.log.String()
		l.t.Logf("berth-gpu:\n%s", s[max(0, len(s)-6000):])
	}
	l.cmd = nil
}

// labs counts those of a test that are not stopped: they share the kubelet's directory.
var labs int

// wipe makes the kubelet's directory that of a new node.
func wipe(t *testing.T) {
	t.Helper()
	all, err := filepath.Glob("/var/lib/kubelet/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		if err := os.RemoveAll(f); err != nil {
			t.Error(err)
		}
	}
}

// clean fails the test if berth-gpu, stopped well, left a socket.
func (l *lab) clean() {
	globs := []string{filepath.Join(l.dir, "run/*.sock")}
	if labs <= 1 && (l.cmd != nil || labs == 0) {
		globs = append(globs, "/var/lib/kubelet/*/berth-gpu*")
	}
	for _, glob := range globs {
		left, err := filepath.Glob(glob)
		if err != nil || len(left) > 0 {
			l.t.Errorf("left: %v %v", left, err)
		}
	}
}

// within polls until ok, and returns how long it took.
func within(t *testing.T, limit time.Duration, what string, ok func() (bool, string)) time.Duration {
	t.Helper()
	start := time.Now()
	for {
		good, state := ok()
		if good {
			return time.Since(start)
		}
		if time.Since(start) > limit {
			t.Fatalf("%s: not within %v: %s", what, limit, state)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// full says whether the long versions are asked for.
func full() bool { return os.Getenv("BERTH_GPU_FULL") != "" }

// times is how often something is done: the figure in the full version, a tenth otherwise.
func times(n int) int {
	if full() {
		return n
	}
	return n / 10
}

func uuid(i int) string { return fmt.Sprintf("GPU-be27f000-0000-4000-8000-%012x", i) }

// fault appends faults to a profile.
func fault(profile string, faults ...string) string {
	return profile + "faults:\n  - " + strings.Join(faults, "\n  - ") + "\n"
}
