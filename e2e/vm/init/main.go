// Command init is a guest's first program: /init of its initramfs, which mounts the disk, and then process 1 on the disk,
// which mounts what a Linux system has, runs the command in /vm/command and switches the machine off. In a guest with
// systemd that is process 1, and this its only service.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	var err error
	switch _, serr := os.Stat("/modules"); {
	case serr == nil:
		err = enter()
	case os.Getpid() == 1:
		err = serve()
	default:
		err = report()
	}
	fmt.Println("init:", err)
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

type mount struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
}

func mounts(all []mount) error {
	for _, m := range all {
		if err := errors.Join(os.MkdirAll(m.target, 0o755), unix.Mount(m.source, m.target, m.fstype, m.flags, m.data)); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	return nil
}

// enter makes the disk the root and goes on there.
func enter() error {
	if err := mounts([]mount{{"dev", "/dev", "devtmpfs", 0, ""}, {"proc", "/proc", "proc", 0, ""}}); err != nil {
		return err
	}
	modules, err := filepath.Glob("/modules/*")
	if err != nil {
		return err
	}
	const compressed = 4 // MODULE_INIT_COMPRESSED_FILE
	for _, m := range modules {
		f, err := os.Open(m)
		if err != nil {
			return err
		}
		if err := unix.FinitModule(int(f.Fd()), "", compressed); err != nil {
			return fmt.Errorf("module %s: %w", m, err)
		}
		_ = f.Close()
	}
	if err := mounts([]mount{{"/dev/vda", "/root", "ext4", 0, "prjquota"}}); err != nil {
		return err
	}
	for _, d := range []string{"dev", "proc"} {
		if err := unix.Mount("/"+d, "/root/"+d, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move /%s: %w", d, err)
		}
	}
	err = errors.Join(unix.Chdir("/root"), unix.Mount(".", "/", "", unix.MS_MOVE, ""), unix.Chroot("."), unix.Chdir("/"))
	if err != nil {
		return fmt.Errorf("switch to the disk: %w", err)
	}
	params, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	program := "/sbin/vminit"
	for p := range strings.FieldsSeq(string(params)) {
		if name, ok := strings.CutPrefix(p, "init="); ok {
			program = name
		}
	}
	return unix.Exec(program, []string{filepath.Base(program)}, os.Environ())
}

// serve is process 1 on the disk.
func serve() error {
	err := mounts([]mount{
		{"sys", "/sys", "sysfs", 0, ""},
		{"devpts", "/dev/pts", "devpts", 0, "gid=5,mode=620,ptmxmode=666"},
		{"shm", "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, ""},
		{"mqueue", "/dev/mqueue", "mqueue", 0, ""},
		{"run", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=755"},
		{"cgroup2", "/sys/fs/cgroup", "cgroup2", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "nsdelegate,memory_recursiveprot"},
		{"securityfs", "/sys/kernel/security", "securityfs", 0, ""},
		{"bpf", "/sys/fs/bpf", "bpf", 0, ""},
	})
	if err != nil {
		return err
	}
	for _, l := range [][2]string{{"/proc/self/fd", "/dev/fd"}, {"/proc/self/fd/0", "/dev/stdin"}, {"/proc/self/fd/1", "/dev/stdout"}, {"/proc/self/fd/2", "/dev/stderr"}} {
		_ = os.Symlink(l[0], l[1]) // devtmpfs may have it
	}
	return report()
}

// report runs the command, tells how it ended, and leaves the disk as it must be to be read.
func report() error {
	result, err := port("result")
	if err != nil {
		return err
	}
	exit, err := work()
	report := struct {
		Exit  int    `json:"exit"`
		Error string `json:"error"`
	}{Exit: exit}
	if err != nil {
		report.Error = err.Error()
	}
	b, err := json.Marshal(report)
	if err != nil {
		return err
	}
	if _, err := result.Write(b); err != nil {
		return err
	}
	unix.Sync()
	// "u" remounts everything read-only, files that are open for writing or not (Documentation/admin-guide/sysrq.rst)
	if err := os.WriteFile("/proc/sysrq-trigger", []byte("u"), 0); err != nil {
		return err
	}
	time.Sleep(500 * time.Millisecond) // it does so in the background and does not say when
	return errors.New("done")
}

// work runs the command and collects every orphan until it ends.
func work() (exit int, err error) {
	if err := errors.Join(unix.Sethostname([]byte("vm")), loUp()); err != nil {
		return 0, err
	}
	raw, err := os.ReadFile("/vm/command")
	if err != nil {
		return 0, err
	}
	var c struct{ Argv, Env []string }
	if err := json.Unmarshal(raw, &c); err != nil {
		return 0, err
	}
	out, err := port("output")
	if err != nil {
		return 0, err
	}
	children := make(chan os.Signal, 16)
	signal.Notify(children, unix.SIGCHLD)
	cmd := exec.Command(c.Argv[0], c.Argv[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/vm", out, out
	cmd.Env = append([]string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "TMPDIR=/tmp"}, c.Env...)
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	for {
		var st unix.WaitStatus
		pid, err := unix.Wait4(-1, &st, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, err
		case pid == cmd.Process.Pid && st.Signaled():
			return 128 + int(st.Signal()), nil
		case pid == cmd.Process.Pid && st.Exited():
			return st.ExitStatus(), nil
		}
	}
}

// port opens a virtio port by its name.
func port(name string) (*os.File, error) {
	all, err := filepath.Glob("/sys/class/virtio-ports/*/name")
	if err != nil {
		return nil, err
	}
	for _, file := range all {
		if b, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(b)) == name {
			return os.OpenFile(filepath.Join("/dev", filepath.Base(filepath.Dir(file))), os.O_WRONLY, 0)
		}
	}
	return nil, fmt.Errorf("no virtio port %q among %v", name, all)
}

// loUp sets lo up.
func loUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // a socket
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}
