package shims

import (
	"os"

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

func closeAll(fds []*os.File) {
	for _, f := range fds {
		_ = f.Close()
	}
}
