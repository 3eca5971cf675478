package shims

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/cri/internal/cgroup"
	v1 "github.com/berth-project/berth/proto/shim/v1"
)

func announce(h *cgroup.Handles) v1.Cgroups {
	if h == nil {
		return v1.Cgroups{}
	}
	return v1.Cgroups{Unified: h.Unified != nil, V1: len(h.Tasks)}
}

func files(h *cgroup.Handles) []*os.File {
	if h == nil {
		return nil
	}
	return h.Files()
}

func byName(names []string, fds []*os.File) map[string]*os.File {
	m := map[string]*os.File{}
	for i, f := range fds {
		if i < len(names) {
			m[names[i]] = f
		} else {
			_ = f.Close()
		}
	}
	return m
}

// duplicate is another descriptor of the same open file.
func duplicate(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("duplicate %s: %w", f.Name(), err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// duplicates are those of a map's files; what cannot be duplicated is left out.
func duplicates(of map[string]*os.File) map[string]*os.File {
	all := map[string]*os.File{}
	for name, f := range of {
		if own, err := duplicate(f); err == nil {
			all[name] = own
		}
	}
	return all
}

func closeAll(fds []*os.File) {
	for _, f := range fds {
		_ = f.Close()
	}
}
