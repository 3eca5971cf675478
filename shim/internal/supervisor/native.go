package supervisor

import (
	"context"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	v1 "github.com/berth-project/berth/proto/shim/v1"
	"github.com/berth-project/berth/shim/internal/executor"
	"github.com/berth-project/berth/shim/internal/oci"
)

// Native is the Runtime of the shim's own executor, and of OCI programs for the containers that name one.
type Native struct {
	Executor *executor.Executor
	OCI      *oci.Runtime
}

// Pod implements Runtime.
func (n *Native) Pod(ctx context.Context, r *v1.RunPod, cg executor.Cgroups) (*executor.Pod, error) {
	return n.Executor.Pod(ctx, r, cg)
}

// Start implements Runtime.
func (n *Native) Start(ctx context.Context, s *executor.Start, o *v1.OCIRuntime) (*executor.Process, Workload, error) {
	if o != nil {
		p, c, err := n.OCI.Start(ctx, s, o)
		if err != nil {
			return nil, nil, err
		}
		return p, c, nil
	}
	p, err := n.Executor.Start(ctx, s)
	if err != nil {
		return nil, nil, err
	}
	w := &nativeWorkload{executor: n.Executor}
	for _, ns := range s.Spec.Linux.Namespaces {
		w.namespaces |= executor.SpecNamespaceFlag(ns.Type)
	}
	return p, w, nil
}

// Adopt implements Runtime.
func (n *Native) Adopt(id string, pid int, o *v1.OCIRuntime) (Workload, error) {
	if o != nil {
		return n.OCI.Adopt(id, o), nil
	}
	return &nativeWorkload{executor: n.Executor, namespaces: namespacesOf(pid)}, nil
}

// namespacesOf compares a process's namespaces with the shim's own. A process that is gone has none.
func namespacesOf(pid int) int {
	flags := 0
	for _, kind := range [...]string{"mnt", "net", "ipc", "uts", "pid", "user", "cgroup"} {
		own, err := os.Readlink("/proc/self/ns/" + kind)
		if err != nil {
			continue
		}
		if theirs, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/ns/" + kind); err == nil && theirs != own {
			flags |= executor.NamespaceFlag(kind)
		}
	}
	return flags
}

type nativeWorkload struct {
	executor   *executor.Executor
	namespaces int
}

// Exec implements Workload.
func (w *nativeWorkload) Exec(ctx context.Context, x *executor.Exec) (*executor.Process, error) {
	x.Namespaces = w.namespaces | unix.CLONE_NEWNS
	return w.executor.Exec(ctx, x)
}

// Remove implements Workload: all that the executor made went with the container's namespaces.
func (w *nativeWorkload) Remove(context.Context) error { return nil }
