// Package cage runs a program where it can leave nothing behind: in its own pid, mount and network namespaces, with
// a tmpfs as /run, as a node has. When the program ends, however it ends, the kernel ends every process it started,
// undoes every mount and deletes every link, nftables table and iptables chain. What remains are directories and
// cgroups, and [Run] removes those. It must not import anything of the benchmark.
package cage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/e2e/census"
	"github.com/berth-project/berth/e2e/harness"
)

// cniState is where libcni under containerd keeps its cache; no option moves it.
const cniState = "/var/lib/cni"

// Spec says what a cage may leave and where; all of it is removed before and after.
type Spec struct {
	Mark string   // part of every name below, by which leftovers are found
	Dirs []string // directories, the first one is there when the program starts
	// Cgroup is the group of everything, in every hierarchy. It is favoured: one group among a busy machine's processes
	// would get as much as one of them, and what runs in it would be measured waiting.
	Cgroup string
}

// favour is how many times the share of any other process a cage has.
const favour = 32

// Run executes argv in a cage and returns its exit code. argv[0] is called as pid 1's first child by [Init], to
// which the calling program must map the verb it is given. Cancelling ctx kills the cage.
func Run(ctx context.Context, s Spec, verb string, argv []string) (code int, err error) {
	if err := s.clear(); err != nil {
		return 1, fmt.Errorf("leftovers of an earlier run: %w", err)
	}
	before := census.Take()
	_, missing := os.Stat(cniState)
	err = errors.Join(os.MkdirAll(s.Dirs[0], 0o711), os.MkdirAll(cniState, 0o755), harness.MakeCgroup(s.Cgroup), harness.FavourCgroup(s.Cgroup, favour))
	if err == nil {
		code, err = start(ctx, append([]string{verb, s.Dirs[0]}, argv...))
	}
	err = errors.Join(err, s.clear())
	if missing != nil {
		_ = os.Remove(cniState) // unless somebody else uses it by now
	}
	return code, errors.Join(err, s.left(before))
}

func start(ctx context.Context, argv []string) (int, error) {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", argv...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = nil, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET,
		Setpgid:    true, // Ctrl-C comes to us alone; pid 1 is killed, and with it all
		Pdeathsig:  syscall.SIGKILL,
	}
	err := cmd.Run()
	if ctx.Err() != nil {
		return 1, ctx.Err()
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Exited() {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// clear removes cgroups and directories.
func (s Spec) clear() error {
	err := harness.RemoveCgroup(s.Cgroup)
	for _, d := range s.Dirs {
		err = errors.Join(err, os.RemoveAll(d))
	}
	return err
}

// left is an error if anything with the cage's mark came into being and is still there.
func (s Spec) left(before census.Census) error {
	var all []error
	for _, thing := range before.Settle(3*time.Second, s.Dirs...) {
		if strings.Contains(thing, s.Mark) {
			all = append(all, fmt.Errorf("left behind: %s", thing))
		}
	}
	return errors.Join(all...)
}

// Init is pid 1 of a cage: it makes the mounts, brings loopback up, runs argv, reaps whoever is orphaned, and
// returns argv's exit code. dir is bound where libcni keeps its cache.
func Init(dir string, argv []string) (int, error) {
	if err := mounts(dir); err != nil {
		return 1, err
	}
	if err := loopback(); err != nil {
		return 1, err
	}
	p, err := os.StartProcess("/proc/self/exe", append([]string{"bench"}, argv...), &os.ProcAttr{
		Dir: "/", Env: os.Environ(), Files: []*os.File{nil, os.Stdout, os.Stderr},
	})
	if err != nil {
		return 1, err
	}
	for {
		var st unix.WaitStatus
		pid, err := unix.Wait4(-1, &st, 0, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 1, fmt.Errorf("wait: %w", err)
		}
		if pid == p.Pid {
			if st.Signaled() {
				return 1, fmt.Errorf("the benchmark died of %s", st.Signal())
			}
			return st.ExitStatus(), nil
		}
	}
}

func mounts(dir string) error {
	cache := dir + "/cni-cache"
	return errors.Join(
		os.MkdirAll(cache, 0o755),
		wrap("private mounts", unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")),
		wrap("proc", unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")),
		wrap("run", unix.Mount("run", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755")),
		wrap(cniState, unix.Mount(cache, cniState, "", unix.MS_BIND, "")),
	)
}

func wrap(what string, err error) error {
	if err != nil {
		return fmt.Errorf("mount %s: %w", what, err)
	}
	return nil
}

// loopback sets lo up, for the registry.
func loopback() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s) //nolint:errcheck // a socket for one ioctl
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, req)
}

// Enter puts the process into the group in every hierarchy and becomes argv.
func Enter(group string, argv []string) error {
	if err := harness.JoinCgroup(group); err != nil {
		return err
	}
	return fmt.Errorf("%s: %w", argv[0], syscall.Exec(argv[0], argv, os.Environ()))
}
