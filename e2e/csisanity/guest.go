package csisanity

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/berth-project/berth/e2e/vm"
)

// tests are those of csi/test that are of every backend.
const tests = "TestLife|TestCrash|TestHostile|TestStuckRoot|TestNoDevices|TestModes|TestModify|TestParallel|TestSameName|TestPool|TestFullAtStart|TestInline|TestLinks"

// Guest runs this program again, with the argument "quota", and the tests of berth-csi in a virtual machine whose
// kernel has project quota. What they print goes to output, the reports to out.
func Guest(ctx context.Context, cache, bin, tools, out string, output io.Writer) (err error) {
	work, err := os.MkdirTemp("", "csi-guest-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	program := filepath.Join(work, "csiconformance")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, "github.com/berth-project/berth/e2e/cmd/csiconformance")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build: %w: %s", err, text)
	}
	suite := filepath.Join(work, "csi.test")
	build = exec.CommandContext(ctx, "go", "test", "-c", "-trimpath", "-ldflags", "-s -w", "-o", suite, "./csi/test")
	build.Dir, build.Env = "..", append(os.Environ(), "CGO_ENABLED=0")
	if text, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build: %w: %s", err, text)
	}
	r, err := vm.Run(ctx, vm.Machine{
		Cache: cache, Work: work, MemoryMB: 2048, DiskMB: 3000, CPUs: 2,
		Programs: []string{"mkfs.ext4", "mkfs.xfs", "e2fsck", "resize2fs"},
		Files: map[string]string{
			"/vm/csiconformance": program, "/vm/csi.test": suite, "/berth/bin/berth-csi": filepath.Join(bin, "berth-csi"), "/berth/tools/csi-sanity": filepath.Join(tools, "csi-sanity"),
		},
		// util-linux's mount finds no loop device in a guest that small, busybox's does.
		Command: []string{"/bin/busybox", "sh", "-c", "ln -sf busybox /bin/mount && ln -sf busybox /bin/umount && /vm/csiconformance quota && exec /vm/csi.test -test.timeout 30m -test.run '" + tests + "'"},
		Env:     []string{"BERTH_BIN=/berth/bin", "BERTH_TOOLS=/berth/tools", "BERTH_OUT=/vm/out", "PATH=/bin:/sbin:/usr/bin:/usr/sbin", "BERTH_CSI_QUOTA=1", "BERTH_CSI_PROGRAM=/berth/bin/berth-csi"},
		Output:  output,
	})
	if err != nil {
		return err
	}
	err = os.CopyFS(filepath.Join(out, "guest"), os.DirFS(filepath.Join(r.Out, "out")))
	if r.Exit != 0 {
		err = errors.Join(err, fmt.Errorf("in the guest it ends with %d", r.Exit))
	}
	return err
}
