package cdi

import (
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	specs "tags.cncf.io/container-device-interface/specs-go"

	"github.com/berth-project/berth/proto/errs"
)

var (
	kindForm    = regexp.MustCompile(`^[A-Za-z]([A-Za-z0-9_.-]*[A-Za-z0-9])?/[A-Za-z]([A-Za-z0-9_-]*[A-Za-z0-9])?$`)
	deviceForm  = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9_.:-]*[A-Za-z0-9])?$`)
	versionForm = regexp.MustCompile(`^v?(0\.[3-9]|1\.[01])\.[0-9]{1,2}$`)
)

// check says what is wrong with a specification.
func check(s *specs.Spec) error {
	var all []error
	if !versionForm.MatchString(s.Version) {
		all = append(all, fmt.Errorf("cdiVersion %q: have 0.3 to 1.1", s.Version))
	}
	if !kindForm.MatchString(s.Kind) {
		all = append(all, fmt.Errorf("kind %q: want vendor/class", s.Kind))
	}
	all = append(all, checkEdits("containerEdits", &s.ContainerEdits))
	seen := map[string]bool{}
	for i := range s.Devices {
		d := &s.Devices[i]
		if !deviceForm.MatchString(d.Name) || seen[d.Name] {
			all = append(all, fmt.Errorf("device name %q is none, or there twice", d.Name))
		}
		seen[d.Name] = true
		all = append(all, checkEdits("device "+d.Name, &d.ContainerEdits))
	}
	if d, ok := s.Annotations[loaderDirectory]; ok && !clean(d) {
		all = append(all, fmt.Errorf("annotation %s: %q is no clean absolute path", loaderDirectory, d))
	}
	return errors.Join(all...)
}

func checkEdits(where string, e *specs.ContainerEdits) error {
	var all []error
	bad := func(format string, args ...any) {
		all = append(all, errs.InvalidArgument.Errorf(where+": "+format, args...))
	}
	for _, v := range e.Env {
		if name, _, ok := strings.Cut(v, "="); !ok || name == "" || strings.ContainsRune(v, 0) {
			bad("env %q: want NAME=value", v)
		}
	}
	for _, n := range e.DeviceNodes {
		switch {
		case n == nil:
			bad("an empty device node")
		case !clean(n.Path) || n.HostPath != "" && !clean(n.HostPath):
			bad("device node %q (host %q): want clean absolute paths", n.Path, n.HostPath)
		case !slices.Contains([]string{"", "b", "c", "u", "p"}, n.Type):
			bad("device node %s: type %q: have b, c, u, p", n.Path, n.Type)
		case strings.Trim(n.Permissions, "rwm") != "":
			bad("device node %s: permissions %q: have r, w, m", n.Path, n.Permissions)
		case n.Major < 0 || n.Minor < 0 || n.Major > 1<<12 || n.Minor > 1<<20:
			bad("device node %s: numbers %d:%d", n.Path, n.Major, n.Minor)
		}
	}
	for _, m := range e.Mounts {
		if m == nil || !clean(m.ContainerPath) || m.HostPath == "" || strings.ContainsRune(m.HostPath, 0) {
			bad("mount %+v: want hostPath and a clean absolute containerPath", m)
		}
	}
	switch {
	case len(e.Hooks) > 0:
		all = append(all, errs.Unimplemented.Errorf("%s: hooks are not run: nothing is executed on the host for a container", where))
	case len(e.NetDevices) > 0:
		all = append(all, errs.Unimplemented.Errorf("%s: netDevices are not moved", where))
	case e.IntelRdt != nil:
		all = append(all, errs.Unimplemented.Errorf("%s: intelRdt is not set", where))
	}
	return errors.Join(all...)
}

// clean says that p is absolute, below the root, and has nothing in it that leads elsewhere.
func clean(p string) bool {
	return path.IsAbs(p) && p != "/" && path.Clean(p) == p && !strings.ContainsRune(p, 0)
}
