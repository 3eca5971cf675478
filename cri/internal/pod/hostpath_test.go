package pod

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/proto/errs"
)

// hung is the root of a file system whose server (FUSE) takes every request and answers none, until the test's end.
func hung(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	server, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("this kernel has no FUSE: %v", err)
	}
	if err := unix.Mount("hung", dir, "fuse", unix.MS_NODEV|unix.MS_NOSUID, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", server)); err != nil {
		t.Fatal(errors.Join(err, unix.Close(server)))
	}
	t.Cleanup(func() { // who waits for an answer gets ENOTCONN
		if err := errors.Join(unix.Close(server), unix.Unmount(dir, unix.MNT_DETACH)); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// TestHungHostPath: a container whose volume's server does not answer is refused in time and by the path's name, as often as it
// is tried; all tries wait for one look, other containers are made meanwhile, and the daemon ends.
func TestHungHostPath(t *testing.T) {
	n := newNode(t)
	n.paths.limit = 300 * time.Millisecond
	dir, pod := hung(t), n.run("hung")
	config := containerConfig("stuck", "/bin/true")
	config.Mounts = []*cri.Mount{{ContainerPath: "/tmp", HostPath: dir}}
	for range 3 {
		start := time.Now()
		_, err := n.Create(t.Context(), pod, config)
		if !errors.Is(err, errs.DeadlineExceeded) || !strings.Contains(fmt.Sprint(err), "mounts[0].host_path: "+dir) {
			t.Errorf("a volume that hangs: %v", err)
		}
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("it took %v", took)
		}
	}
	n.paths.mu.Lock()
	if len(n.paths.running) != 1 {
		t.Errorf("%d looks, want 1", len(n.paths.running))
	}
	n.paths.mu.Unlock()
	if st := n.await(n.start(pod, "other", "/bin/true")); st.Exit.Code != 0 {
		t.Errorf("another container: %+v", st.Exit)
	}
	start := time.Now()
	n.restart()
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("a restart took %v", took)
	}
}

// TestHostPathIsMade: a path that does not exist becomes a directory, what is there stays, and what cannot be made is said.
func TestHostPathIsMade(t *testing.T) {
	l, dir := newLookups(), t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := errors.Join(l.ensure(t.Context(), filepath.Join(dir, "a/b")), l.ensure(t.Context(), file)); err != nil {
			t.Error(err)
		}
	}
	if fi, err := os.Stat(filepath.Join(dir, "a/b")); err != nil || !fi.IsDir() {
		t.Errorf("what was not there: %v", err)
	}
	if fi, err := os.Stat(file); err != nil || !fi.Mode().IsRegular() {
		t.Errorf("what was there: %v", err)
	}
	if err := l.ensure(t.Context(), "/proc/none/dir"); !errors.Is(err, errs.InvalidArgument) {
		t.Errorf("what cannot be made: %v", err)
	}
	if len(l.running) != 0 {
		t.Errorf("looks are left: %v", l.running)
	}
}
