package test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/proto/errs"
	v1 "github.com/berth-project/berth/proto/shim/v1"
)

// frozen is a file system of its own that can be frozen (FIFREEZE): who writes to it then sleeps uninterruptibly, like
// before a dead file server. thaw ends that.
func frozen(t *testing.T) (dir string, freeze, thaw func()) {
	t.Helper()
	disk, dir := filepath.Join(t.TempDir(), "disk"), t.TempDir()
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(disk, 64<<20); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"mkfs.ext4", "-q", disk}, {"mount", "-o", "loop", disk, dir}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	const fiFreeze, fiThaw = 0xc0045877, 0xc0045878 // linux/fs.h: _IOWR('X', 119, int) and 120
	thaw = sync.OnceFunc(func() {
		if err := unix.IoctlSetInt(int(root.Fd()), fiThaw, 0); err != nil {
			t.Errorf("thaw: %v", err)
		}
		_ = root.Close()
	})
	t.Cleanup(func() {
		for end := time.Now().Add(5 * time.Second); ; time.Sleep(50 * time.Millisecond) { // its users die late
			if err = unix.Unmount(dir, 0); err == nil || time.Now().After(end) {
				break
			}
		}
		if err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir, func() {
		if err := unix.IoctlSetInt(int(root.Fd()), fiFreeze, 0); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(thaw)
	}, thaw
}

// hanging is a container whose process has to make a mount point on a file system that does not answer.
func (s *shim) hanging(layer, dir string, limit time.Duration) *ctr {
	sp := spec("true")
	sp.Mounts = append(sp.Mounts, specs.Mount{Destination: "/hung", Type: "bind", Source: dir, Options: []string{"rbind"}},
		specs.Mount{Destination: "/hung/point", Type: "bind", Source: "/tmp", Options: []string{"rbind"}})
	c := s.container(sp, layer)
	c.start.Limit = limit
	return c
}

// children are the processes whose parent is the shim.
func (s *shim) children() (n int) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", s.cmd.Process.Pid, s.cmd.Process.Pid))
	if err != nil {
		s.t.Fatal(err)
	}
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", s.cmd.Process.Pid))
	if err != nil {
		s.t.Fatal(err)
	}
	n = len(strings.Fields(string(b)))
	for _, f := range tasks {
		if b, err := os.ReadFile(f); err == nil && !strings.HasSuffix(f, fmt.Sprintf("/%d/children", s.cmd.Process.Pid)) {
			n += len(strings.Fields(string(b)))
		}
	}
	return n
}

// TestUninterruptible: starts and execs that hang in the kernel, beyond the reach of SIGKILL, end with an error that says
// where; however many there are, everything else goes on; and when the kernel lets go, nothing is left.
func TestUninterruptible(t *testing.T) {
	s := launchShim(t)
	dir, freeze, thaw := frozen(t)
	layer := rootfs(t)
	upper := s.container(spec("true"), layer)
	upper.start.Rootfs.Upper, upper.start.Rootfs.Work, upper.start.Limit = dir+"/upper", dir+"/work", 200*time.Millisecond
	if err := errors.Join(os.Mkdir(dir+"/upper", 0o755), os.Mkdir(dir+"/work", 0o755)); err != nil {
		t.Fatal(err)
	}
	freeze()
	begin := time.Now()
	err := s.hanging(layer, dir, 200*time.Millisecond).try()
	if !errors.Is(err, errs.DeadlineExceeded) || !strings.Contains(fmt.Sprint(err), "hangs in the kernel") || !strings.Contains(fmt.Sprint(err), "/hung/point") {
		t.Errorf("start: %v", err)
	}
	if took := time.Since(begin); took > 8*time.Second {
		t.Errorf("the start took %v to fail", took)
	}

	begin = time.Now()
	// here it is the supervisor that writes: overlayfs makes its work directory
	if err := upper.try(); !errors.Is(err, errs.DeadlineExceeded) || !strings.Contains(fmt.Sprint(err), "the supervisor itself hangs") {
		t.Errorf("start: %v", err)
	}
	if took := time.Since(begin); took > 12*time.Second {
		t.Errorf("the start took %v to fail", took)
	}
	if err := upper.try(); !errors.Is(err, errs.AlreadyExists) {
		t.Errorf("the same container while its start hangs: %v", err)
	}

	// more at once than requests may run
	var wg sync.WaitGroup
	for range 70 {
		c := s.hanging(layer, dir, 700*time.Millisecond)
		wg.Go(func() {
			if err := c.try(); err == nil {
				t.Error("a hanging start succeeded")
			}
		})
	}
	time.Sleep(500 * time.Millisecond)
	begin = time.Now()
	var hello v1.HelloReply
	s.must(v1.MethodDelete, v1.ContainerRef{ID: "unknown"}, nil, nil)
	s.must(v1.MethodHello, v1.Hello{Version: v1.Version}, nil, &hello)
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("other requests took %v while starts hang", took)
	}
	wg.Wait()
	ok := s.container(spec("true"), layer).run()
	if x := ok.wait(); x.Code != 0 {
		t.Errorf("a start beside hanging ones: %+v", x)
	}

	thaw()
	for end := time.Now().Add(5 * time.Second); s.children() > 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d processes are left", s.children())
		}
	}
}
