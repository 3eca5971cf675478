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

// Guest runs this program again, with the argument "quota", in a virtual machine whose kernel has project quota. What
// it prints goes to output, its reports to out.
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
	r, err := vm.Run(ctx, vm.Machine{
		Cache: cache, Work: work, MemoryMB: 2048, DiskMB: 3000, CPUs: 2,
		Programs: []string{"mkfs.ext4", "mkfs.xfs", "e2fsck", "resize2fs"},
		Files: map[string]string{
			"/vm/csiconformance": program, "/berth/bin/berth-csi": filepath.Join(bin, "berth-csi"), "/berth/tools/csi-sanity": filepath.Join(tools, "csi-sanity"),
		},
		// util-linux's mount finds no loop device in a guest that small, busybox's does.
		Command: []string{"/bin/busybox", "sh", "-c", "ln -sf busybox /bin/mount && ln -sf busybox /bin/umount && exec /vm/csiconformance quota"},
		Env:     []string{"BERTH_BIN=/berth/bin", "BERTH_TOOLS=/berth/tools", "BERTH_OUT=/vm/out", "PATH=/bin:/sbin:/usr/bin:/usr/sbin"},
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
