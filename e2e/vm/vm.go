// Package vm runs a program inside a virtual machine with Debian's kernel 6.12: what this machine's own kernel cannot
// show (cgroup v2 with controllers, AppArmor, SCTP, project quotas, device-mapper) is tested there. QEMU emulates the
// processor (TCG), so a guest is 10 to 20 times slower than the host: conformance there, not benchmarks.
//
// A guest boots from a kernel and an initramfs of one static program (vm/init) and three modules; its disk is an ext4 file
// system made from a directory (mke2fs -d), so no privilege and no mount is needed to make one. The program's output
// comes out on a virtio port while it runs, its exit code on another, and what it wrote below /vm/out is read from the
// disk afterwards (debugfs).
package vm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// Machine is a guest to be run once.
type Machine struct {
	Cache    string            // where kernels and built programs are kept between runs
	Work     string            // an empty directory for the disk; the caller removes it
	Programs []string          // programs of the host by name or path, copied with their libraries; "sudo=env" is env by another name
	Files    map[string]string // guest path: host path of a file or directory
	Command  []string          // run as root in /vm, argv[0] a guest path
	Env      []string
	MemoryMB int
	DiskMB   int
	CPUs     int
	Systemd  bool      // process 1 is systemd, with a system bus; else the command's parent is
	Kernel   []string  // more kernel parameters
	Output   io.Writer // the command's output as it comes, may be nil
	Disk     string    // host path of an image that is /dev/vdb; what the guest wrote to it stays
	Cut      string    // when the command's output has this in it, the guest's power is cut: QEMU is killed
}

// Result is what became of the command.
type Result struct {
	Exit    int
	Output  string
	Console string // the kernel's messages
	Out     string // host directory with what the guest wrote to /vm/out
	Cut     bool   // its power was cut; there is no exit code, and nothing in Out
}

// exitReport is what vm/init writes to the result port.
type exitReport struct {
	Exit  int    `json:"exit"`
	Error string `json:"error"`
}

// Run boots the machine, waits for the command's end and returns what it did. A guest that does not come to an end is
// killed with ctx; the error then carries the end of its console.
func Run(ctx context.Context, m Machine) (*Result, error) {
	k, err := fetchKernel(ctx, m.Cache)
	if err != nil {
		return nil, fmt.Errorf("guest kernel: %w", err)
	}
	initProgram, err := buildInit(ctx, m.Cache)
	if err != nil {
		return nil, err
	}
	initrd := filepath.Join(m.Work, "initrd")
	if err := writeInitramfs(initrd, initProgram, k); err != nil {
		return nil, err
	}
	disk := filepath.Join(m.Work, "disk")
	if err := makeDisk(ctx, &m, k, initProgram, disk); err != nil {
		return nil, fmt.Errorf("guest disk: %w", err)
	}
	return m.boot(ctx, k, initrd, disk)
}

func (m *Machine) boot(ctx context.Context, k *kernel, initrd, disk string) (*Result, error) {
	at := func(name string) string { return filepath.Join(m.Work, name) }
	// no_timer_check: on a busy machine the emulated timer is late for the kernel's test of it, which then panics.
	params := append([]string{"console=ttyS0", "quiet", "panic=-1", "no_timer_check", "cgroup_no_v1=all", "net.ifnames=0", "random.trust_cpu=on"}, m.Kernel...)
	if m.Systemd {
		params = append(params, "init=/lib/systemd/systemd", "systemd.unit=vm.target", "systemd.show_status=0")
	}
	args := []string{
		"-accel", "tcg,thread=multi", "-cpu", "max,cx16=off", "-smp", strconv.Itoa(max(m.CPUs, 1)), "-m", strconv.Itoa(m.MemoryMB),
		"-nodefaults", "-no-user-config", "-nographic", "-no-reboot", "-nic", "none",
		"-kernel", k.image, "-initrd", initrd, "-append", strings.Join(params, " "),
		"-drive", "file=" + disk + ",format=raw,if=virtio,cache=unsafe",
		"-serial", "file:" + at("console"),
		"-device", "virtio-serial",
		"-chardev", "file,id=output,path=" + at("output"), "-device", "virtserialport,chardev=output,name=output",
		"-chardev", "file,id=result,path=" + at("result"), "-device", "virtserialport,chardev=result,name=result",
		"-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng",
	}
	if m.Disk != "" { // unsafe: the host itself does not lose power
		args = append(args, "-drive", "file="+m.Disk+",format=raw,if=virtio,cache=unsafe")
	}
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", args...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("qemu-system-x86_64 (Debian package qemu-system-x86): %w", err)
	}
	done := make(chan struct{})
	copied := make(chan struct{})
	power := &breaker{to: m.Output, word: m.Cut, cut: cmd.Process.Kill}
	go func() { defer close(copied); follow(at("output"), power, done) }()
	err := cmd.Wait()
	close(done)
	<-copied
	console, _ := os.ReadFile(at("console"))
	output, _ := os.ReadFile(at("output"))
	r := &Result{Console: string(console), Output: string(output), Out: at("out"), Cut: power.tripped}
	if r.Cut && ctx.Err() == nil {
		return r, nil
	}
	if err != nil || ctx.Err() != nil {
		return r, fmt.Errorf("guest: %w\n%s\n%s\n%s", errors.Join(err, ctx.Err()), said.String(), tail(r.Console), tail(r.Output))
	}
	var report exitReport
	b, err := os.ReadFile(at("result"))
	if err == nil {
		err = json.Unmarshal(b, &report)
	}
	if err != nil || report.Error != "" {
		return r, fmt.Errorf("guest ended without a result: %w %s\n%s\n%s", err, report.Error, said.String(), tail(r.Console))
	}
	r.Exit = report.Exit
	return r, dump(ctx, disk, "/vm/out", r.Out)
}

func tail(s string) string { return s[max(0, len(s)-4000):] }

// dump reads a directory of an ext4 image.
func dump(ctx context.Context, disk, from, to string) error {
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, "debugfs", "-R", fmt.Sprintf("rdump %s %s", from, to), disk).CombinedOutput()
	if err != nil {
		return fmt.Errorf("debugfs: %w: %s", err, out)
	}
	return nil
}
