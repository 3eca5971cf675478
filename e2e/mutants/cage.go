package mutants

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// caged says, in the environment of the second process, that it is the second.
const caged = "BERTH_MUTANTS_CAGED"

// Cage calls run in a second process of this program to which the machine's files are read-only, and returns what is to be
// the exit code. A mutant is code whose last guard is gone, held against input that means harm: one that unpacks hostile
// layers without staying inside of them wrote into /etc/passwd of the machine that ran it. What tests make lies in the
// directory for temporary files, in /run and in the build cache, which stay writable. The name of the machine is its own too.
func Cage(run func() int) int {
	if os.Getenv(caged) != "" {
		if err := furnish(); err != nil {
			fmt.Fprintln(os.Stderr, "a cage for mutants:", err)
			return 1
		}
		return run()
	}
	runtime.LockOSThread() // Pdeathsig is sent when the forking thread ends
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), caged+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWUTS, Pdeathsig: unix.SIGTERM}
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "a cage for mutants:", err)
		return 1
	}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT)
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s)
		}
	}()
	err := cmd.Wait()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() > 0 {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// furnish makes the root file system read-only in this mount namespace, but for what tests write to.
func furnish() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return err
	}
	for _, dir := range []string{os.TempDir(), "/run", filepath.Join(cache, "go-build")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(dir, dir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("%s: %w", dir, err)
		}
	}
	// The namespaced part of /proc/sys stays writable. A mutant that mounts a /proc of its own gets at the rest all the same:
	// what guards that is judged by tests that start nothing.
	for _, m := range []struct {
		dir   string
		flags uintptr
	}{
		{"/proc/sys", unix.MS_BIND},
		{"/proc/sys/net", unix.MS_BIND},
		{"/proc/sys", unix.MS_REMOUNT | unix.MS_BIND | unix.MS_RDONLY},
		{"/", unix.MS_REMOUNT | unix.MS_BIND | unix.MS_RDONLY},
	} {
		source := m.dir
		if m.flags&unix.MS_REMOUNT != 0 {
			source = ""
		}
		if err := unix.Mount(source, m.dir, "", m.flags, ""); err != nil {
			return fmt.Errorf("%s: %w", m.dir, err)
		}
	}
	if err := unix.Access("/etc", unix.W_OK); !errors.Is(err, unix.EROFS) {
		return fmt.Errorf("/etc is not read-only: %v", err)
	}
	return nil
}
