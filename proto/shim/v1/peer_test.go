package v1_test

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/berth-project/berth/proto/errs"
	v1 "github.com/berth-project/berth/proto/shim/v1"
)

// strangerEnv makes the test binary somebody who connects to the socket it names.
const strangerEnv = "BERTH_TEST_STRANGER"

func TestMain(m *testing.M) {
	if path := os.Getenv(strangerEnv); path != "" {
		c, err := net.Dial("unix", path)
		if err != nil {
			os.Exit(3)
		}
		_, _ = c.Read(make([]byte, 1)) // until it is refused
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// TestOnlyRootMaySpeak: a peer of another uid is refused by who it is, even where the socket's mode let it in.
func TestOnlyRootMaySpeak(t *testing.T) {
	dir, err := os.MkdirTemp("", "shim") // every directory above has to let the stranger pass
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // a test's
	if err := errors.Join(os.Chmod(dir, 0o755), os.Chmod(path, 0o666)); err != nil {
		t.Fatal(err)
	}
	for uid, want := range map[uint32]bool{0: true, 65534: false} {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), strangerEnv+"="+path)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		uc, err := l.AcceptUnix()
		if err != nil {
			t.Fatal(err)
		}
		_, err = v1.NewConn(uc)
		if (err == nil) != want || !want && errs.Of(err) != errs.PermissionDenied {
			t.Errorf("uid %d: %v", uid, err)
		}
		if err := errors.Join(uc.Close(), cmd.Wait()); err != nil {
			t.Error(err)
		}
	}
}
