package executor

import (
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/proto/errs"
	"github.com/berth-project/berth/shim/internal/plan"
)

// sysctlPath checks a key and returns its path below /proc/sys and the kind of namespace it belongs to. As in
// sysctl(8), a key whose first separator is a dot may hold slashes for dots in interface names.
func sysctlPath(key, value string) (file, kind string, err error) {
	bad := func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_./-", r))
	}
	if key == "" || strings.ContainsFunc(key, bad) || strings.ContainsAny(value, "\x00\n\r") {
		return "", "", errs.InvalidArgument.Errorf("sysctl %q=%q: bad characters", key, value)
	}
	file = key
	if dot, slash := strings.IndexByte(key, '.'), strings.IndexByte(key, '/'); dot >= 0 && (slash < 0 || dot < slash) {
		swap := func(r rune) rune {
			switch r {
			case '.':
				return '/'
			case '/':
				return '.'
			}
			return r
		}
		file = strings.Map(swap, key)
	}
	for part := range strings.SplitSeq(file, "/") {
		if part == "" || part == "." || part == ".." {
			return "", "", errs.InvalidArgument.Errorf("sysctl %q is not a name", key)
		}
	}
	switch {
	case strings.HasPrefix(file, "net/"):
		return file, "net", nil
	case strings.HasPrefix(file, "fs/mqueue/"), strings.HasPrefix(file, "kernel/shm"), strings.HasPrefix(file, "kernel/msg"),
		file == "kernel/sem":
		return file, "ipc", nil
	case file == "kernel/domainname", file == "kernel/hostname":
		return file, "uts", nil
	}
	return "", "", errs.InvalidArgument.Errorf("sysctl %q is not namespaced", key)
}

// writeSysctls appends the writes, in the order of the keys, through the host's verified procfs: the files below
// sys/ show the namespaces of whoever opens them. owned tells which kinds are not the host's.
func writeSysctls(p *plan.Plan, proc int, values map[string]string, owned func(kind string) bool) error {
	for _, key := range slices.Sorted(maps.Keys(values)) {
		file, kind, err := sysctlPath(key, values[key])
		if err != nil {
			return err
		}
		if !owned(kind) {
			return errs.InvalidArgument.Errorf("sysctl %q needs a %s namespace of the pod's own", key, kind)
		}
		what := "sysctl " + key
		fd := p.Open(plan.Openat2(what, plan.F(proc, "proc"), "sys/"+file, unix.O_WRONLY, 0,
			unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS|unix.RESOLVE_NO_XDEV))
		p.Add(plan.Write(what, plan.R(fd), values[key]), plan.Close(plan.R(fd)))
	}
	return nil
}

func (c *compiler) sysctls(values map[string]string) error {
	return writeSysctls(c.Plan, c.host.proc, values, func(kind string) bool {
		_, joined := c.in.join[kind]
		return joined || c.in.fresh[kind]
	})
}
