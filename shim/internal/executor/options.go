package executor

import (
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/proto/errs"
)

// mountOptions are the options of a spec mount, sorted by what they concern.
type mountOptions struct {
	set, clr       uint64 // MOUNT_ATTR_* of the mount itself
	recSet, recClr uint64 // and of all mounts below it
	propagation    uint64 // MS_PRIVATE, MS_SLAVE, MS_SHARED or MS_UNBINDABLE; 0: not said
	propagationRec bool
	bind, rbind    bool
	idmap, ridmap  bool
	data           []string // for the file system
}

type attrOption struct {
	name  string
	clear bool
	attr  uint64
}

func attrOptions() []attrOption {
	return []attrOption{
		{"ro", false, unix.MOUNT_ATTR_RDONLY},
		{"rw", true, unix.MOUNT_ATTR_RDONLY},
		{"nosuid", false, unix.MOUNT_ATTR_NOSUID},
		{"suid", true, unix.MOUNT_ATTR_NOSUID},
		{"nodev", false, unix.MOUNT_ATTR_NODEV},
		{"dev", true, unix.MOUNT_ATTR_NODEV},
		{"noexec", false, unix.MOUNT_ATTR_NOEXEC},
		{"exec", true, unix.MOUNT_ATTR_NOEXEC},
		{"nosymfollow", false, unix.MOUNT_ATTR_NOSYMFOLLOW},
		{"symfollow", true, unix.MOUNT_ATTR_NOSYMFOLLOW},
		{"nodiratime", false, unix.MOUNT_ATTR_NODIRATIME},
		{"diratime", true, unix.MOUNT_ATTR_NODIRATIME},
	}
}

// atime is a field of mount attributes, not a bit: setting one clears the others first.
func atimeOption(name string) (uint64, bool) {
	switch name {
	case "relatime", "norelatime", "atime", "nostrictatime":
		return unix.MOUNT_ATTR_RELATIME, true
	case "noatime":
		return unix.MOUNT_ATTR_NOATIME, true
	case "strictatime":
		return unix.MOUNT_ATTR_STRICTATIME, true
	}
	return 0, false
}

func parseOptions(m *specs.Mount) (*mountOptions, error) {
	o := &mountOptions{bind: m.Type == "bind"}
	for _, opt := range m.Options {
		if strings.ContainsRune(opt, 0) {
			return nil, errs.InvalidArgument.Errorf("mount %s: option with a NUL byte", m.Destination)
		}
		if !o.flag(opt) && !o.attribute(opt) {
			o.data = append(o.data, opt)
		}
	}
	if slices.Contains(o.data, "tmpcopyup") || slices.Contains(o.data, "remount") {
		return nil, errs.Unimplemented.Errorf("mount %s: the options tmpcopyup and remount are not supported", m.Destination)
	}
	o.bind = o.bind || o.rbind
	return o, nil
}

// flag takes an option that is not an attribute of the mount.
func (o *mountOptions) flag(opt string) bool {
	propagations := map[string]uint64{
		"private": unix.MS_PRIVATE, "slave": unix.MS_SLAVE, "shared": unix.MS_SHARED, "unbindable": unix.MS_UNBINDABLE,
	}
	if p, ok := propagations[opt]; ok {
		o.propagation, o.propagationRec = p, false
		return true
	}
	if p, ok := propagations[strings.TrimPrefix(opt, "r")]; ok && opt[0] == 'r' {
		o.propagation, o.propagationRec = p, true
		return true
	}
	switch opt {
	case "bind":
		o.bind = true
	case "rbind":
		o.rbind = true
	case "idmap":
		o.idmap = true
	case "ridmap":
		o.idmap, o.ridmap = true, true
	case "defaults", "", "async", "nolazytime", "loud", "nomand", "noiversion":
	default:
		return false
	}
	return true
}

func (o *mountOptions) attribute(opt string) bool {
	if v, ok := atimeOption(opt); ok {
		o.clr |= unix.MOUNT_ATTR__ATIME
		o.set = o.set&^uint64(unix.MOUNT_ATTR__ATIME) | v
		return true
	}
	if v, ok := atimeOption(strings.TrimPrefix(opt, "r")); ok && strings.HasPrefix(opt, "r") && opt != "relatime" {
		o.recClr |= unix.MOUNT_ATTR__ATIME
		o.recSet = o.recSet&^uint64(unix.MOUNT_ATTR__ATIME) | v
		return true
	}
	for _, a := range attrOptions() {
		switch opt {
		case a.name:
			turn(&o.set, &o.clr, a)
			return true
		case "r" + a.name:
			turn(&o.recSet, &o.recClr, a)
			return true
		}
	}
	return false
}

func turn(set, clr *uint64, a attrOption) {
	if a.clear {
		*clr |= a.attr
		*set &^= a.attr
		return
	}
	*set |= a.attr
	*clr &^= a.attr
}
