package cage

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestMain is the caged program as well: Run calls this very binary.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "init" {
		code, err := Init(os.Args[2], os.Args[3:])
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(code)
	}
	if len(os.Args) == 3 && os.Args[1] == "inside" {
		os.Exit(inside(os.Args[2]))
	}
	os.Exit(m.Run())
}

// favoured says whether this machine's cpu controller, where it can be seen, gives the cage its share.
func favoured() bool {
	seen := false
	for file, want := range map[string]string{"/sys/fs/cgroup/cpu/berth-cagetest/cpu.shares": "32768", "/sys/fs/cgroup/berth-cagetest/cpu.weight": "3200"} {
		b, err := os.ReadFile(file)
		if err == nil && strings.TrimSpace(string(b)) != want {
			return false
		}
		seen = seen || err == nil
	}
	return seen
}

// inside leaves a file, a mount point's content and a process, and ends with 7 if it is alone.
func inside(dir string) int {
	if err := os.WriteFile(filepath.Join(dir, "left"), nil, 0o644); err != nil {
		return 1
	}
	if err := os.WriteFile("/run/berth-cagetest", nil, 0o644); err != nil {
		return 2
	}
	if _, err := os.StartProcess("/bin/sleep", []string{"sleep", "1000"}, &os.ProcAttr{}); err != nil {
		return 3
	}
	if os.Getppid() != 1 {
		return 4
	}
	if _, err := os.Stat("/proc/self/exe"); err != nil {
		return 5
	}
	if !favoured() {
		return 6
	}
	return 7
}

func spec(t *testing.T) Spec {
	return Spec{Mark: "berth-cagetest", Dirs: []string{filepath.Join(t.TempDir(), "berth-cagetest")}, Cgroup: "/berth-cagetest"}
}

func TestNothingIsLeft(t *testing.T) {
	s := spec(t)
	code, err := Run(t.Context(), s, "init", []string{"inside", s.Dirs[0]})
	if err != nil || code != 7 {
		t.Fatal(code, err)
	}
	for _, gone := range []string{s.Dirs[0], "/run/berth-cagetest", "/sys/fs/cgroup/unified/berth-cagetest"} {
		if _, err := os.Stat(gone); err == nil {
			t.Error(gone, "is left")
		}
	}
}

func TestCancelEndsIt(t *testing.T) {
	s := spec(t)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := Run(ctx, s, "init", []string{"-test.run=TestSleeper"}); err == nil {
		t.Fatal("a cancelled run succeeded")
	}
	if _, err := os.Stat(s.Dirs[0]); err == nil {
		t.Error("the directory is left")
	}
}

func TestSleeper(t *testing.T) {
	if os.Getppid() == 1 {
		time.Sleep(time.Minute)
	}
}
