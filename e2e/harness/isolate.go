package harness

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// isolated says, in the environment of the second process, that it is the second.
const isolated = "BERTH_ISOLATED"

// Isolate calls run in a second process of this program that has a network and a mount namespace of its own, with
// an empty /run/netns, and returns what is to be the exit code. All that run starts is in there too: it collides
// with no other lab's ports, links, nftables table or mounts, and a census of those sees this lab alone. Cgroups and
// processes stay the machine's. The network has a bridge "uplink" with the node's address 192.0.2.1 and the default
// route, which leads nowhere.
//
// When run did not succeed, whatever is left of the lab is ended, even if the second process died in a panic.
func Isolate(lab *Lab, run func() int) int {
	if os.Getenv(isolated) != "" {
		if err := furnish(lab.Node()); err != nil {
			fmt.Fprintln(os.Stderr, "network namespace for the tests:", err)
			return 1
		}
		return run()
	}
	release, err := lab.claim()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer release()
	runtime.LockOSThread() // Pdeathsig is sent when the forking thread ends
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), isolated+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: unix.SIGTERM}
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "network namespace for the tests:", err)
		return 1
	}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGQUIT)
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s)
		}
	}()
	err = cmd.Wait()
	if err != nil {
		lab.KeepLogs(os.Stderr)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if serr := Stop(ctx, lab); serr != nil {
			fmt.Fprintln(os.Stderr, "stop:", serr)
		}
	}
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() > 0 {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// claim makes sure that this is the only process that runs the lab, and waits for another one's end: both would
// remove each other's directories. The claim is a socket without a file, so it ends with the process.
func (l *Lab) claim() (release func(), err error) {
	const limit = 20 * time.Minute
	for end := time.Now().Add(limit); ; time.Sleep(200 * time.Millisecond) {
		s, err := net.Listen("unix", "@berth-lab-"+l.Name)
		if err == nil {
			return func() { _ = s.Close() }, nil
		}
		if !errors.Is(err, unix.EADDRINUSE) || time.Now().After(end) {
			return nil, fmt.Errorf("lab %s is in use by another test run: wait for its end: %w", l.Name, err)
		}
	}
}

func furnish(node string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := os.MkdirAll("/run/netns", 0o755); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", "/run/netns", "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	for _, args := range []string{
		"link set lo up", "link add uplink type bridge", "addr add 192.0.2.1/24 dev uplink", "link set uplink up",
		"route add default via 192.0.2.2",
	} {
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", args, err, out)
		}
	}
	// Names: the node's is known, questions for others are refused at once instead of being lost.
	for path, text := range map[string]string{
		"/etc/hosts": "127.0.0.1 localhost\n192.0.2.1 " + node + "\n", "/etc/resolv.conf": "nameserver 192.0.2.1\n",
	} {
		mine := "/run/netns/." + filepath.Base(path)
		if err := errors.Join(os.WriteFile(mine, []byte(text), 0o644), unix.Mount(mine, path, "", unix.MS_BIND, "")); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if err := os.Remove(mine); err != nil {
			return err
		}
	}
	return nil
}

// FromEnv makes a lab with the programs that the environment names.
func FromEnv(name string) (*Lab, error) {
	bin, tools := os.Getenv("BERTH_BIN"), os.Getenv("BERTH_TOOLS")
	for _, dir := range []struct{ name, path, has, how string }{
		{"BERTH_BIN", bin, "berth-cri", "make build"}, {"BERTH_TOOLS", tools, "busybox-sh", "make tools"},
	} {
		if dir.path == "" {
			return nil, fmt.Errorf("%s is not set: it names the absolute directory that `%s` filled; `make test-e2e` sets it", dir.name, dir.how)
		}
		if _, err := os.Stat(dir.path + "/" + dir.has); err != nil {
			return nil, fmt.Errorf("%s: %w: run `%s` first", dir.name, err, dir.how)
		}
	}
	return NewLab(name, bin, tools), nil
}
