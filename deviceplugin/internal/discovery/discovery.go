// Package discovery is how the program learns of GPUs: one small interface, [Source], behind which stand NVML (in
// a child process, because its calls may hang or crash), /proc with sysfs, and a model of a node. [Guard] puts a
// time limit around every call, and keeps a GPU that does not answer away from all others.
package discovery

import (
	"context"

	"github.com/berth-project/berth/deviceplugin/internal/health"
	"github.com/berth-project/berth/deviceplugin/internal/inventory"
)

// Source tells what a node's GPUs are and how they are. Its methods may be called at the same time. All take as
// long as the driver does, and return early if they can when ctx ends; what they return is not cleaned.
type Source interface {
	// Name is "nvml", "proc" or "fake".
	Name() string
	// Inventory lists the GPUs. A GPU that is broken is listed as long as its identity can be read; one that
	// fails does not keep the others from being listed.
	Inventory(ctx context.Context) (*inventory.Node, error)
	// Sample looks at one GPU and at no other. A GPU that is lost is a Sample that says so, not an error; one that is
	// not there is NotFound.
	Sample(ctx context.Context, g Target) (health.Sample, error)
	// Events waits for XIDs and returns at least one, or the error of ctx.
	Events(ctx context.Context) ([]health.Event, error)
	// Processes lists who computes on a GPU: of the host's pid namespace.
	Processes(ctx context.Context, g Target) ([]Process, error)
}

// Target is one GPU, as the inventory has it. The address leads to it without a look at the others; the UUID says
// whether the GPU that is there is the one that is meant.
type Target struct {
	UUID string `json:"uuid"`
	Bus  string `json:"bus"` // "0000:3b:00.0"
}

// Process is one user of a GPU.
type Process struct {
	PID    int    `json:"pid"`
	Memory uint64 `json:"memory,omitempty"` // bytes
}
