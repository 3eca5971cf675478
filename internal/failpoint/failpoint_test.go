package failpoint_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth/internal/failpoint"
)

var point = failpoint.New("test.point")

func TestTerms(t *testing.T) {
	t.Cleanup(func() { _ = failpoint.Arm("") })
	if err := failpoint.Arm("test.point=1*off->2*error(disk gone)->1*sleep(20ms)"); err != nil {
		t.Fatal(err)
	}
	if err := point.Hit(); err != nil {
		t.Fatalf("hit 1: %v", err)
	}
	for i := range 2 {
		if err := point.Hit(); err == nil || !strings.Contains(err.Error(), "disk gone") {
			t.Fatalf("hit %d: %v", i+2, err)
		}
	}
	start := time.Now()
	if err := point.Hit(); err != nil || time.Since(start) < 20*time.Millisecond {
		t.Fatalf("sleep: %v after %v", err, time.Since(start))
	}
	if err := point.Hit(); err != nil {
		t.Fatalf("used up: %v", err)
	}
}

func TestBadSpecsChangeNothing(t *testing.T) {
	t.Cleanup(func() { _ = failpoint.Arm("") })
	if err := failpoint.Arm("test.point=error(kept)"); err != nil {
		t.Fatal(err)
	}
	for _, spec := range []string{"nosuch=kill", "test.point=explode", "test.point=0*kill", "test.point", "test.point=sleep(x)"} {
		if err := failpoint.Arm(spec); err == nil {
			t.Errorf("Arm(%q) succeeded", spec)
		}
	}
	if err := point.Hit(); err == nil {
		t.Error("a refused spec disarmed the point")
	}
}

func TestFileMustBeRootOnly(t *testing.T) {
	t.Cleanup(func() { _ = failpoint.Arm("") })
	file := filepath.Join(t.TempDir(), "fail")
	if err := failpoint.Load(file); err != nil {
		t.Fatalf("absent file: %v", err)
	}
	if err := os.WriteFile(file, []byte("test.point=error(x)\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := failpoint.Load(file); err == nil {
		t.Error("a world-readable file was accepted")
	}
	if err := os.Chmod(file, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := failpoint.Load(file); err != nil {
		t.Fatal(err)
	}
	if point.Hit() == nil {
		t.Error("not armed from the file")
	}
	if !slices.Contains(failpoint.Names(), "test.point") {
		t.Error("not listed")
	}
}
