package conform

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

const isolated = "BERTH_CONFORM_ISOLATED"

// Isolate calls run in a second process of this program, in network and mount namespaces of its own: /run and
// /var/lib are empty there, nothing that the plugins under test keep is the machine's, and nothing is left when it
// ends. It returns the exit code.
func Isolate(run func() int) int {
	if os.Getenv(isolated) != "" {
		if err := furnish(); err != nil {
			fmt.Fprintln(os.Stderr, "namespaces for the suite:", err)
			return 1
		}
		return run()
	}
	runtime.LockOSThread() // Pdeathsig is sent when the forking thread ends
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), isolated+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return max(exit.ExitCode(), 1)
	case err != nil:
		fmt.Fprintln(os.Stderr, "namespaces for the suite:", err)
		return 1
	}
	return 0
}

func furnish() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	for _, dir := range []string{"/run", "/var/lib"} {
		if err := unix.Mount("conform", dir, "tmpfs", 0, "mode=0755"); err != nil {
			return err
		}
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return os.MkdirAll("/run/netns", 0o755)
}

// LayerEtc makes /etc writable for this process and what it starts, and for nobody else.
func LayerEtc() error {
	upper, work := "/run/etc-upper", "/run/etc-work"
	if err := errors.Join(os.MkdirAll(upper, 0o755), os.MkdirAll(work, 0o755)); err != nil {
		return err
	}
	return unix.Mount("etc", "/etc", "overlay", 0, "lowerdir=/etc,upperdir="+upper+",workdir="+work)
}

// NodeBackend writes the file by which a node chooses iptables or nftables; empty removes it. /etc must be layered.
func NodeBackend(backend string) error {
	const node = "/etc/berth/cni.json"
	if err := os.RemoveAll(filepath.Dir(node)); err != nil || backend == "" {
		return err
	}
	return errors.Join(os.MkdirAll(filepath.Dir(node), 0o755), os.WriteFile(node, []byte(`{"backend": "`+backend+`"}`), 0o644))
}

// Netns is a named network namespace, mounted as runtimes do it.
type Netns struct {
	Path string
	f    *os.File
}

var serials atomic.Int64

func newNetns(prefix string) (*Netns, error) {
	n := &Netns{Path: fmt.Sprintf("/run/netns/%s%d", prefix, serials.Add(1))}
	if err := os.WriteFile(n.Path, nil, 0o444); err != nil {
		return nil, err
	}
	ch := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = unix.Mount("/proc/thread-self/ns/net", n.Path, "", unix.MS_BIND, "")
		}
		if err == nil {
			n.f, err = os.Open(n.Path)
		}
		ch <- err
	}()
	return n, <-ch
}

// vanish takes the namespace's path and our hold on it away: what is in it dies, unless the plugin keeps it.
func (n *Netns) vanish() {
	_ = unix.Unmount(n.Path, unix.MNT_DETACH)
	_ = os.Remove(n.Path)
	_ = n.f.Close()
}

// do runs fn on a thread in the namespace; the thread is thrown away.
func (n *Netns) do(fn func() error) error {
	ch := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(int(n.f.Fd()), unix.CLONE_NEWNET); err != nil {
			ch <- err
			return
		}
		ch <- fn()
	}()
	return <-ch
}

// sh runs one command (no shell) in the namespace.
func (n *Netns) sh(line string) (string, error) {
	var out []byte
	err := n.do(func() (err error) {
		args := strings.Fields(line)
		out, err = exec.Command(args[0], args[1:]...).CombinedOutput()
		return err
	})
	if err != nil {
		return string(out), fmt.Errorf("%s: %w: %s", line, err, out)
	}
	return string(out), nil
}

// Host is a machine: its namespace and a client outside.
type Host struct {
	*Netns
	outside    *Netns
	containers []*Netns
}

const hostIP, outsideIP = "192.0.2.1", "192.0.2.2"

func newHost() (*Host, error) {
	for _, dir := range []string{"/run/berth", "/run/cni", "/var/lib/cni", "/var/run/cni"} {
		if err := os.RemoveAll(dir); err != nil {
			return nil, err
		}
	}
	h := &Host{}
	var err error
	if h.Netns, err = newNetns("host"); err != nil {
		return nil, err
	}
	if h.outside, err = newNetns("outside"); err != nil {
		return nil, err
	}
	for _, c := range []struct {
		ns   *Netns
		line string
	}{
		{h.Netns, "ip link add up0 type veth peer name up0 netns " + filepath.Base(h.outside.Path)},
		{h.Netns, "ip addr add " + hostIP + "/24 dev up0"},
		{h.outside, "ip addr add " + outsideIP + "/24 dev up0"},
		{h.Netns, "ip link set up0 up"},
		{h.outside, "ip link set up0 up"},
		{h.Netns, "ip link set lo up"},
		{h.Netns, "ip route add default via " + outsideIP},
	} {
		if _, err := c.ns.sh(c.line); err != nil {
			return nil, err
		}
	}
	return h, nil
}

func (h *Host) close() {
	for _, c := range h.containers {
		c.vanish()
	}
	if h.outside != nil {
		h.outside.vanish()
	}
	if h.Netns != nil {
		h.vanish()
	}
}

// container makes a container's namespace.
func (t *T) container() *Netns {
	n, err := newNetns("c")
	if err != nil {
		t.Fatalf("the suite's own container: %v", err)
	}
	t.host.containers = append(t.host.containers, n)
	return n
}
