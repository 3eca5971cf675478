package harness

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/e2e/census"
)

// Stop ends everything of a lab that an earlier process may have started, in the order that lets each clean up
// after itself, and says what is left of it. It is idempotent.
func Stop(ctx context.Context, l *Lab) error {
	all := []error{StopByPidFile(filepath.Join(l.Logs(), "kubelet.pid"))}
	if alive(filepath.Join(l.Logs(), "berth-cri.pid")) {
		all = append(all, emptyRuntime(ctx, l.Socket()))
	}
	for _, name := range append([]string{"berth-csi", "berth-cri", "berth-netd", "registry"}, ControlPlane()...) {
		all = append(all, StopByPidFile(filepath.Join(l.Logs(), name+".pid")))
	}
	all = append(all, l.Clear())
	return errors.Join(all...)
}

func alive(pidFile string) bool {
	b, err := os.ReadFile(pidFile)
	if err != nil {
		return false
	}
	_, err = os.Stat("/proc/" + strings.TrimSpace(string(b)))
	return err == nil
}

func emptyRuntime(ctx context.Context, socket string) error {
	c, err := Dial(socket)
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return c.RemoveAll(ctx)
}

// Clear removes what a lab's programs leave on purpose (idle supervisors, network tables, directories) and then
// fails if anything of the lab is still there.
func (l *Lab) Clear() error {
	all := []error{l.clearNetwork()}
	for _, g := range []string{l.Own, l.Cgroup()} {
		all = append(all, RemoveCgroup(g))
	}
	for _, dir := range []string{l.Run, l.Dir} {
		all = append(all, unmountBelow(dir), os.RemoveAll(dir))
	}
	for range 100 { // killed processes are reaped, and namespaces end, a moment later
		if len(l.left()) == 0 {
			break
		}
		time.Sleep(30 * time.Millisecond)
	}
	return errors.Join(append(all, l.left()...)...)
}

func (l *Lab) left() (all []error) {
	for kind, things := range census.Take(l.Dir, l.Run) {
		for name := range things {
			if strings.Contains(name, "berth-"+l.Name) {
				all = append(all, fmt.Errorf("left behind: %s %s", kind, name))
			}
		}
	}
	return all
}

// clearNetwork removes the table that berth-cni keeps while the node lives, unless pods of other labs are in it.
// The bridge is what the upstream plugins leave of a peer's network.
func (l *Lab) clearNetwork() error {
	if _, err := net.InterfaceByName(l.bridge()); err == nil {
		if out, err := exec.Command("ip", "link", "delete", l.bridge()).CombinedOutput(); err != nil {
			return fmt.Errorf("ip: %w: %s", err, out)
		}
	}
	all, err := filepath.Glob("/run/*/cni/attachments/*")
	if err != nil {
		return err
	}
	for _, a := range all {
		if !strings.HasPrefix(a, l.Run+"/") && os.Getenv(isolated) == "" {
			return nil
		}
	}
	out, err := exec.Command("nft", "list", "tables").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "table inet berth-node") {
		return nil
	}
	if out, err := exec.Command("nft", "delete", "table", "inet", "berth-node").CombinedOutput(); err != nil {
		return fmt.Errorf("nft: %w: %s", err, out)
	}
	return nil
}

func unmountBelow(dir string) error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			if uerr := unix.Unmount(f[4], unix.MNT_DETACH); uerr != nil && !errors.Is(uerr, unix.EINVAL) {
				err = errors.Join(err, fmt.Errorf("unmount %s: %w", f[4], uerr))
			}
		}
	}
	return err
}
