// Package powercut cuts the power of a machine while berth-csi makes, snapshots, grows and deletes volumes: QEMU is killed
// at each failpoint in turn, and the guest boots again on the same disk and makes the same calls. What the guest
// had handed to its disk is kept, what only its memory had is gone: so it is a power cut with a disk that does not lie. The
// guest's side is csi/test's TestPowerCut.
package powercut

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth/e2e/vm"
)

// dark is what the guest says when its power may go.
const dark = "power: off"

// TestPowerCut: 0 orphans, 0 lost or mixed bytes, at whatever failpoint the power goes. BERTH_POWER_POOLS and
// BERTH_POWER_POINTS choose some of the pools and of the failpoints, by their beginnings, separated by spaces.
func TestPowerCut(t *testing.T) {
	cache, bin := os.Getenv("BERTH_VM"), os.Getenv("BERTH_BIN")
	if cache == "" || bin == "" {
		t.Skip("BERTH_VM does not name a directory for kernels, or BERTH_BIN none of programs: use `make test-power`")
	}
	suite := filepath.Join(t.TempDir(), "csi.test")
	build := exec.Command("go", "test", "-c", "-trimpath", "-ldflags", "-s -w", "-o", suite, "./csi/test")
	build.Dir, build.Env = "../..", append(os.Environ(), "CGO_ENABLED=0")
	if text, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v: %s", err, text)
	}
	list, err := exec.Command(filepath.Join(bin, "berth-csi"), "failpoints").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, pool := range chosen("BERTH_POWER_POOLS", []string{"btrfs-btrfs", "loop-ext4", "loop-xfs"}) {
		t.Run(pool, func(t *testing.T) {
			m := &machine{T: t, cache: cache, pool: pool, suite: suite, driver: filepath.Join(bin, "berth-csi")}
			m.run(chosen("BERTH_POWER_POINTS", points(pool, strings.Fields(string(list)))))
		})
	}
}

// chosen are those that a variable of the environment names by their beginnings, without it all.
func chosen(variable string, all []string) []string {
	names := strings.Fields(os.Getenv(variable))
	if len(names) == 0 {
		return all
	}
	return slices.DeleteFunc(slices.Clone(all), func(s string) bool {
		return !slices.ContainsFunc(names, func(name string) bool { return strings.HasPrefix(s, name) })
	})
}

// points are the failpoints that a life reaches on a pool: those of making, snapshotting, growing and deleting.
func points(pool string, all []string) (some []string) {
	backend, _, _ := strings.Cut(pool, "-")
	verbs := []string{"create", "delete", "snapshot", "delete_snapshot", "expand", "journal", backend}
	rare := []string{"csi.create.undo", "csi.loop.after_freeze"} // after a failure, or of a volume in use
	for _, p := range all {
		if slices.Contains(verbs, strings.Split(p, ".")[1]) && !slices.Contains(rare, p) {
			some = append(some, p)
		}
	}
	return some
}

// machine is a guest that boots again and again on one disk.
type machine struct {
	*testing.T
	cache, pool, suite, driver string
	disk                       string
	acks                       []string // of the life that was cut off
}

func (m *machine) run(points []string) {
	_, fs, _ := strings.Cut(m.pool, "-")
	m.disk = filepath.Join(m.TempDir(), "disk")
	if err := os.WriteFile(m.disk, nil, 0o600); err != nil {
		m.Fatal(err)
	}
	if err := os.Truncate(m.disk, 2<<30); err != nil {
		m.Fatal(err)
	}
	if out, err := exec.Command("mkfs."+fs, "-q", m.disk).CombinedOutput(); err != nil {
		m.Fatalf("mkfs.%s: %v: %s", fs, err, out)
	}
	for _, point := range append(points, "") {
		start := time.Now()
		m.boot(point)
		m.Logf("%5.1f s  %s; acknowledged in the life that was cut off: %v", time.Since(start).Seconds(), point, m.acks)
		if m.Failed() {
			return
		}
	}
}

// boot lets the guest finish the life that was cut off, and cuts its power at a point of a new one, if any.
func (m *machine) boot(point string) {
	m.Helper()
	ctx, cancel := context.WithTimeout(m.Context(), 10*time.Minute)
	defer cancel()
	work, err := os.MkdirTemp(m.TempDir(), "boot-") // some hundred MiB: not kept until the test's end
	if err != nil {
		m.Fatal(err)
	}
	defer os.RemoveAll(work) //nolint:errcheck // the test's directory goes
	r, err := vm.Run(ctx, vm.Machine{
		Cache: m.cache, Work: work, MemoryMB: 768, DiskMB: 300, CPUs: 2, Disk: m.disk, Cut: dark,
		Programs: []string{"mkfs.ext4", "mkfs.xfs", "e2fsck", "resize2fs"},
		Files:    map[string]string{"/vm/csi.test": m.suite, "/vm/berth-csi": m.driver},
		Command:  []string{"/bin/busybox", "sh", "-c", "modprobe loop; exec /vm/csi.test -test.v -test.timeout 9m -test.run '^TestPowerCut$'"},
		Env: []string{
			"PATH=/bin:/sbin:/usr/bin:/usr/sbin", "BERTH_CSI_PROGRAM=/vm/berth-csi", "BERTH_CSI_CUT_DISK=/dev/vdb", "BERTH_CSI_CUT_POOL=" + m.pool,
			"BERTH_CSI_CUT_AT=" + point, "BERTH_CSI_CUT_ACKS=" + strings.Join(m.acks, ","),
		},
	})
	if err != nil {
		m.Fatalf("%s: %v", point, err)
	}
	if r.Cut != (point != "") || !r.Cut && r.Exit != 0 {
		m.Fatalf("%q: cut %v, exit code %d:\n%s", point, r.Cut, r.Exit, r.Output)
	}
	acks, err := acknowledged(r.Output)
	if err != nil {
		m.Fatalf("%q: %v:\n%s", point, err, r.Output)
	}
	m.acks = acks
}

// acknowledged are the acknowledgements of the last life in a boot's output; the one before must have come to its end.
func acknowledged(output string) (acks []string, err error) {
	before, after, ended := strings.Cut(output, "ack: whole=\n")
	if !ended {
		return nil, fmt.Errorf("the life that was cut off did not come to its end, only to %q", before)
	}
	if before, _, dies := strings.Cut(after, dark); dies {
		after = before
	}
	for line := range strings.Lines(after) {
		if ack, ok := strings.CutPrefix(strings.TrimSpace(line), "ack: "); ok {
			acks = append(acks, ack)
		}
	}
	return acks, nil
}
