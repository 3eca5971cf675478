package lockfile

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"
)

// TestMain is also the other process: it takes the lock, says so, and holds it until it is killed.
func TestMain(m *testing.M) {
	path := os.Getenv("LOCKFILE_HOLD")
	if path == "" {
		os.Exit(m.Run())
	}
	lock, err := Take(path)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	// A child that outlives its parent with the file inherited, as one between fork and exec would.
	child := exec.Command("/bin/sleep", "1")
	child.ExtraFiles = []*os.File{lock.f}
	if err := child.Start(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("held")
	time.Sleep(time.Minute)
	runtime.KeepAlive(lock)
}

func TestTake(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	other := exec.Command("/proc/self/exe")
	other.Env = append(os.Environ(), "LOCKFILE_HOLD="+path)
	out, err := other.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "held\n" {
		t.Fatalf("the other process says %q (%v)", line, err)
	}
	var held *Held
	if _, err = Take(path); !errors.As(err, &held) || int(held.Pid) != other.Process.Pid || held.Path != path {
		t.Errorf("while another process holds it: %v", err)
	}
	if err := other.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = other.Wait() // killed: that is its error
	f, err := Take(path)
	if err != nil {
		t.Fatalf("after its owner was killed, with a child of it alive: %v", err)
	}
	if _, err := Take(path); !errors.As(err, &held) || int(held.Pid) != os.Getpid() {
		t.Errorf("a second time in one process: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if f, err = Take(path); err != nil {
		t.Fatalf("after it was given up: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}
