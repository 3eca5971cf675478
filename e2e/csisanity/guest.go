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

// Needs is what a kernel must have for some backends, and this machine's has not. Its name is the argument of the
// command that runs them in a guest.
type Needs struct {
	Name     string
	Backends []Backend
	switched string   // tells csi/test to be of these backends
	tests    string   // those of csi/test that are of every backend, and of these
	programs []string // that the guest must have
	modules  []string // that nothing there loads by itself
}

// Guests are all there are.
func Guests() []Needs {
	const all = "TestLife|TestHostile|TestStuckRoot|TestNoDevices|TestModes|TestModify|TestParallel|TestSameName|TestPool|TestFullAtStart|TestInline|TestLinks"
	return []Needs{
		{Name: "quota", Backends: Quota(), switched: "BERTH_CSI_QUOTA=1", tests: all + "|TestCrash"},
		{
			Name: "lvm", Backends: LVM(), switched: "BERTH_CSI_LVM=1",
			tests:    "TestLife|TestBlock|TestGroup|TestNoOldBytes|TestModes|TestParallel|TestSameName|TestPool|TestInline|TestLinks|TestStuckRoot|TestForeign|TestThinPool|TestThickErased|TestCrash",
			programs: []string{"lvm", "thin_check=pdata_tools"}, modules: []string{"loop", "dm-mod", "dm-thin-pool"},
		},
	}
}

// lvmConf is the guest's: it has neither udev nor dmeventd.
const lvmConf = "global { thin_check_executable=\"/bin/thin_check\" }\n" +
	"activation { monitoring=0 udev_sync=0 udev_rules=0 verify_udev_operations=0 }\nbackup { backup=0 archive=0 }\n"

// Guest runs this program again, with the name of what is needed, and the tests of berth-csi in a virtual machine whose
// kernel has it. What they print goes to output, the reports to out.
func Guest(ctx context.Context, n Needs, p Paths, output io.Writer) (err error) {
	work, err := os.MkdirTemp("", "csi-guest-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	program, suite, conf := filepath.Join(work, "csiconformance"), filepath.Join(work, "csi.test"), filepath.Join(work, "lvm.conf")
	if err := errors.Join(
		build(ctx, ".", "build", "-o", program, "github.com/berth-project/berth/e2e/cmd/csiconformance"),
		build(ctx, "..", "test", "-c", "-o", suite, "./csi/test"), os.WriteFile(conf, []byte(lvmConf), 0o644)); err != nil {
		return err
	}
	// util-linux's mount finds no loop device in a guest that small, busybox's does.
	script := "ln -sf busybox /bin/mount && ln -sf busybox /bin/umount"
	for _, m := range n.modules {
		script += " && modprobe " + m
	}
	r, err := vm.Run(ctx, vm.Machine{
		Cache: p.Cache, Work: work, MemoryMB: 2048, DiskMB: 12_000, CPUs: 2,
		Programs: append([]string{"mkfs.ext4", "mkfs.xfs", "e2fsck", "resize2fs"}, n.programs...),
		Files: map[string]string{
			"/vm/csiconformance": program, "/vm/csi.test": suite, "/berth/bin/berth-csi": filepath.Join(p.Bin, "berth-csi"), "/berth/tools/csi-sanity": filepath.Join(p.Tools, "csi-sanity"),
			"/etc/lvm/lvm.conf": conf,
		},
		Command: []string{"/bin/busybox", "sh", "-c", script + " && /vm/csiconformance " + n.Name + " && exec /vm/csi.test -test.timeout 60m -test.run '" + n.tests + "'"},
		Env:     []string{"BERTH_BIN=/berth/bin", "BERTH_TOOLS=/berth/tools", "BERTH_OUT=/vm/out", "PATH=/bin:/sbin:/usr/bin:/usr/sbin", n.switched, "BERTH_CSI_PROGRAM=/berth/bin/berth-csi"},
		Output:  output,
	})
	if err != nil {
		return err
	}
	err = os.CopyFS(filepath.Join(p.Out, "guest-"+n.Name), os.DirFS(filepath.Join(r.Out, "out")))
	if r.Exit != 0 {
		err = errors.Join(err, fmt.Errorf("in the guest for %s it ends with %d", n.Name, r.Exit))
	}
	return err
}

// Paths are where things are on this machine.
type Paths struct {
	Cache, Bin, Tools, Out string // of guests' kernels; berth-csi; csi-sanity; reports
}

func build(ctx context.Context, dir, verb string, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", append([]string{verb, "-trimpath", "-ldflags", "-s -w"}, args...)...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w: %s", verb, err, text)
	}
	return nil
}
