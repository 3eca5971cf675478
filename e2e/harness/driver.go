package harness

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"strings"
)

// driverEnv chooses a lab's cgroup driver; a guest with systemd sets it.
const driverEnv = "BERTH_CGROUP_DRIVER"

// driver is what the environment says, else cgroupfs.
func driver() string {
	if d := os.Getenv(driverEnv); d != "" {
		return d
	}
	return "cgroupfs"
}

// Systemd says whether systemd makes the lab's groups.
func (l *Lab) Systemd() bool { return l.Driver == "systemd" }

// slice is the lab's own, and what is below it by a further name. Dashes are systemd's way to say "below".
func (l *Lab) slice(names ...string) string {
	all := append([]string{strings.TrimPrefix(l.Own, "/")}, names...)
	for i, n := range all[1:] {
		all[i+1] = strings.ReplaceAll(n, "-", "_")
	}
	return strings.Join(all, "-") + ".slice"
}

// slicePath is a slice's cgroup (systemd.slice(5)).
func slicePath(name string) string {
	var whole, prefix string
	for part := range strings.SplitSeq(strings.TrimSuffix(name, ".slice"), "-") {
		prefix += part
		whole += "/" + prefix + ".slice"
		prefix += "-"
	}
	return whole
}

// Group is the cgroup of the lab's shims, and of pods whose parent PodParent named.
func (l *Lab) Group() string {
	if l.Systemd() {
		return slicePath(l.slice())
	}
	return l.Own
}

// ShimPrefix begins the cgroup of every shim.
func (l *Lab) ShimPrefix() string {
	if l.Systemd() {
		return l.Group() + "/berth-shim-"
	}
	return l.Group() + "/shim-"
}

// PodParent is the cgroup parent of a pod as a kubelet with the lab's driver names it.
func (l *Lab) PodParent(name string) string {
	if l.Systemd() {
		return l.slice("pods", name)
	}
	return path.Join(l.Own, "pods", name)
}

// PodGroup is the cgroup of the parent that PodParent names.
func (l *Lab) PodGroup(name string) string {
	if l.Systemd() {
		return slicePath(l.PodParent(name))
	}
	return l.PodParent(name)
}

// kubeletRoot is below which a kubelet with the lab's driver makes its groups: of a machine that is managed by systemd all.
func (l *Lab) kubeletRoot() string {
	if l.Systemd() {
		return "/"
	}
	return l.Cgroup()
}

func (l *Lab) makeKubeletGroup() error {
	if l.Systemd() {
		return nil
	}
	return MakeCgroup(l.Cgroup())
}

// RemovePodParent removes the group that PodParent named, as a kubelet does; without a name those of all pods.
func (l *Lab) RemovePodParent(name string) error {
	if !l.Systemd() {
		return RemoveCgroup(path.Join(l.Own, "pods", name))
	}
	if name == "" {
		return stopSlice(l.slice("pods"))
	}
	return stopSlice(l.slice("pods", name))
}

// stopSlice ends a slice of systemd's and all that runs in it. One that is not there is fine.
func stopSlice(name string) error {
	out, err := exec.Command("systemctl", "stop", name).CombinedOutput()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && strings.Contains(string(out), "not loaded") {
		return nil
	}
	if err != nil {
		return fmt.Errorf("systemctl stop %s: %w: %s", name, err, out)
	}
	return nil
}
