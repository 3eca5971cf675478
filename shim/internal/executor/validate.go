package executor

import (
	"path"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-project/berth/proto/errs"
)

// validate refuses what the executor does not do, rather than do less than was asked for.
func validate(s *Start, h0 *host) error {
	spec := s.Spec
	if spec == nil || spec.Process == nil || spec.Linux == nil {
		return errs.InvalidArgument.Errorf("the spec has no process or no linux section")
	}
	l := spec.Linux
	h := spec.Hooks
	switch {
	case h != nil && len(h.Prestart)+len(h.CreateRuntime)+len(h.CreateContainer)+len(h.StartContainer)+len(h.Poststart)+len(h.Poststop) > 0: //nolint:staticcheck // Prestart is deprecated, not gone
		return errs.Unimplemented.Errorf("OCI hooks are not run")
	case l.Seccomp != nil:
		return errs.InvalidArgument.Errorf("linux.seccomp is given by digest")
	case l.MountLabel != "":
		return errs.Unimplemented.Errorf("mount label %q: SELinux labels are not set", l.MountLabel)
	case l.IntelRdt != nil, l.MemoryPolicy != nil, len(l.TimeOffsets) > 0, len(l.NetDevices) > 0:
		return errs.Unimplemented.Errorf("intelRdt, memoryPolicy, timeOffsets and netDevices are not supported")
	case spec.VM != nil, spec.Windows != nil, spec.Solaris != nil:
		return errs.InvalidArgument.Errorf("the spec is for another platform")
	}
	return validateProcess(spec.Process, h0)
}

func validateProcess(p *specs.Process, h *host) error {
	switch {
	case len(p.Args) == 0 || p.Args[0] == "":
		return errs.InvalidArgument.Errorf("the process has no arguments")
	case !path.IsAbs(p.Cwd):
		return errs.InvalidArgument.Errorf("the working directory %q is not absolute", p.Cwd)
	case p.ApparmorProfile != "" && p.ApparmorProfile != "unconfined" && !h.apparmor:
		return errs.FailedPrecondition.Errorf("AppArmor profile %q is asked for, but AppArmor is not active", p.ApparmorProfile)
	case p.SelinuxLabel != "":
		return errs.Unimplemented.Errorf("SELinux label %q: SELinux labels are not set", p.SelinuxLabel)
	case p.ExecCPUAffinity != nil:
		return errs.Unimplemented.Errorf("execCPUAffinity is not supported")
	}
	for _, s := range [][]string{p.Args, p.Env, {p.Cwd}} {
		for _, v := range s {
			if strings.IndexByte(v, 0) >= 0 {
				return errs.InvalidArgument.Errorf("argument, variable or directory %q has a NUL byte", v)
			}
		}
	}
	return validateRlimits(p.Rlimits)
}
