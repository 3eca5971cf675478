package cdi

import (
	"cmp"
	"os"
	"slices"
	"strings"

	oci "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	specs "tags.cncf.io/container-device-interface/specs-go"

	"github.com/berth-project/berth/proto/errs"
)

// Apply edits an OCI spec: nodes with a rule each in the device cgroup, mounts after those the kubelet asked for,
// variables in place of those of the image, supplementary groups. A node that does not say its numbers is looked up
// on the host.
func Apply(s *oci.Spec, r Resolution) error {
	for i := range r.Edits {
		if err := apply(s, &r.Edits[i]); err != nil {
			return err
		}
	}
	return nil
}

func apply(s *oci.Spec, e *specs.ContainerEdits) error {
	for _, n := range e.DeviceNodes {
		if err := addNode(s, n); err != nil {
			return err
		}
	}
	mounts := slices.Clone(e.Mounts)
	slices.SortStableFunc(mounts, func(a, b *specs.Mount) int {
		return cmp.Compare(strings.Count(a.ContainerPath, "/"), strings.Count(b.ContainerPath, "/"))
	})
	for _, m := range mounts {
		s.Mounts = slices.DeleteFunc(s.Mounts, func(o oci.Mount) bool { return o.Destination == m.ContainerPath })
		s.Mounts = append(s.Mounts, oci.Mount{Source: m.HostPath, Destination: m.ContainerPath, Type: cmp.Or(m.Type, "bind"), Options: bindOptions(m)})
	}
	for _, v := range e.Env {
		name, _, _ := strings.Cut(v, "=")
		s.Process.Env = slices.DeleteFunc(s.Process.Env, func(o string) bool { return strings.HasPrefix(o, name+"=") })
		s.Process.Env = append(s.Process.Env, v)
	}
	for _, g := range e.AdditionalGIDs {
		if g != 0 && !slices.Contains(s.Process.User.AdditionalGids, g) {
			s.Process.User.AdditionalGids = append(s.Process.User.AdditionalGids, g)
		}
	}
	return nil
}

// bindOptions makes a bind mount of one that does not say what it is, as other runtimes do.
func bindOptions(m *specs.Mount) []string {
	if m.Type != "" && m.Type != "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind") {
		return m.Options
	}
	return append([]string{"rbind"}, m.Options...)
}

func addNode(s *oci.Spec, n *specs.DeviceNode) error {
	d := oci.LinuxDevice{Path: n.Path, Type: n.Type, Major: n.Major, Minor: n.Minor, FileMode: n.FileMode, UID: n.UID, GID: n.GID}
	if d.Type == "" || d.Type != "p" && d.Major == 0 {
		if err := lookUp(cmp.Or(n.HostPath, n.Path), &d); err != nil {
			return err
		}
	}
	s.Linux.Devices = slices.DeleteFunc(s.Linux.Devices, func(o oci.LinuxDevice) bool { return o.Path == d.Path })
	s.Linux.Devices = append(s.Linux.Devices, d)
	if d.Type == "p" {
		return nil
	}
	if s.Linux.Resources == nil {
		s.Linux.Resources = &oci.LinuxResources{}
	}
	rule := oci.LinuxDeviceCgroup{Allow: true, Type: d.Type, Major: &d.Major, Minor: &d.Minor, Access: cmp.Or(n.Permissions, "rwm")}
	s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, rule)
	return nil
}

// lookUp fills in what the specification leaves to the node.
func lookUp(path string, d *oci.LinuxDevice) error {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return errs.FailedPrecondition.Wrap(&os.PathError{Op: "CDI device node", Path: path, Err: err})
	}
	kind := ""
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		kind = "c"
	case unix.S_IFBLK:
		kind = "b"
	case unix.S_IFIFO:
		kind = "p"
	}
	if kind == "" || d.Type != "" && d.Type != kind && (d.Type != "u" || kind != "c") {
		return errs.FailedPrecondition.Errorf("CDI device node %s is not of type %q", path, d.Type)
	}
	d.Type = kind
	d.Major, d.Minor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	if d.FileMode == nil {
		mode := os.FileMode(st.Mode & 0o777)
		d.FileMode = &mode
	}
	if d.UID == nil {
		d.UID, d.GID = &st.Uid, &st.Gid
	}
	return nil
}

// Libraries are the file names mounted below a loader directory, with their paths in the container.
func Libraries(r Resolution) map[string]string {
	all := map[string]string{}
	for _, e := range r.Edits {
		for _, m := range e.Mounts {
			for _, dir := range r.LoaderDirs {
				name, ok := strings.CutPrefix(m.ContainerPath, dir+"/")
				if ok && !strings.Contains(name, "/") && strings.Contains(name, ".so") {
					all[name] = m.ContainerPath
				}
			}
		}
	}
	return all
}
