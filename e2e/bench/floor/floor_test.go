package floor

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/berth-project/berth/e2e/bench/pods"
	"github.com/berth-project/berth/e2e/harness"
)

func TestParse(t *testing.T) {
	got, err := parse("1500 2000 400 100 300\n")
	if err != nil || got[pods.RunPodSandbox] != 1500*time.Microsecond || got[pods.StopPodSandbox] != 300*time.Microsecond {
		t.Fatalf("%v, %v", got, err)
	}
	for _, bad := range []string{"", "1 2 3 4\n", "1 2 3 4 x\n"} {
		if _, err := parse(bad); err == nil {
			t.Errorf("%q passed", bad)
		}
	}
}

// TestFloor runs pods for real, and looks that their groups are gone.
func TestFloor(t *testing.T) {
	const group = "/berth-floortest"
	dir := t.TempDir()
	wait := filepath.Join(dir, "wait")
	if err := Wait(t.Context(), wait); err != nil {
		t.Fatal(err)
	}
	f, err := Start(context.Background(), dir, group, wait)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		got, err := f.Pod()
		if err != nil {
			t.Fatal(err)
		}
		for _, step := range Steps() {
			if got[step] <= 0 || got[step] > time.Second {
				t.Errorf("%s took %v", step, got[step])
			}
		}
	}
	if took, err := f.Burst(t.Context(), 4); err != nil || took <= 0 {
		t.Errorf("burst: %v, %v", took, err)
	}
	if err := f.Stop(); err != nil {
		t.Error(err)
	}
	if pids, err := harness.CgroupPids(group); err != nil || len(pids) > 0 {
		t.Errorf("left: %v, %v", pids, err)
	}
	if err := harness.RemoveCgroup(group); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat("/sys/class/net/floor0"); err == nil {
		t.Error("the bridge is in the host's namespace")
	}
}
