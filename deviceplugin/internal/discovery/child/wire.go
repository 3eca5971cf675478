// Package child runs a source in a process of its own. A driver's library may hang in the kernel or crash: the
// process is killed and another one started, and the program that serves the kubelet goes on.
//
// Parent and child are the same binary (`berth-gpu probe`), so the wire between them has no versions: one JSON
// object a line, requests on the child's standard input, answers, in any order, on its standard output. The child
// ends when its input does.
package child

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"sync"

	"github.com/berth-project/berth/deviceplugin/internal/discovery"
	"github.com/berth-project/berth/deviceplugin/internal/health"
	"github.com/berth-project/berth/deviceplugin/internal/inventory"
	"github.com/berth-project/berth/proto/errs"
)

// The verbs.
const (
	verbInventory = "inventory"
	verbSample    = "sample"
	verbEvents    = "events"
	verbProcesses = "processes"
)

type request struct {
	ID   uint64           `json:"id"`
	Verb string           `json:"verb"`
	GPU  discovery.Target `json:"gpu,omitzero"` // of samples and processes
}

type response struct {
	ID        uint64              `json:"id"`
	Class     errs.Class          `json:"class,omitempty"`
	Error     string              `json:"error,omitempty"`
	Inventory *inventory.Node     `json:"inventory,omitempty"`
	Sample    *health.Sample      `json:"sample,omitempty"`
	Events    []health.Event      `json:"events,omitempty"`
	Processes []discovery.Process `json:"processes,omitempty"`
}

// maxLine bounds what a child may answer: an inventory of 16 GPUs with 7 instances each is 40 KiB.
const maxLine = 4 << 20

// Serve answers requests with src until in ends. Each is answered in a goroutine of its own.
func Serve(ctx context.Context, in io.Reader, out io.Writer, src discovery.Source) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // requests that hang are not waited for: the process ends with this
	var mu sync.Mutex
	enc := json.NewEncoder(out)
	s := bufio.NewScanner(in)
	s.Buffer(make([]byte, 4096), maxLine)
	for s.Scan() {
		var r request
		if err := json.Unmarshal(s.Bytes(), &r); err != nil {
			return errs.InvalidArgument.Errorf("request: %w", err)
		}
		go func() {
			resp := answer(ctx, src, r)
			mu.Lock()
			defer mu.Unlock()
			if err := enc.Encode(resp); err != nil {
				cancel() // the parent is gone
			}
		}()
	}
	return s.Err()
}

func answer(ctx context.Context, src discovery.Source, r request) (resp response) {
	resp.ID = r.ID
	var err error
	switch r.Verb {
	case verbInventory:
		resp.Inventory, err = src.Inventory(ctx)
	case verbSample:
		var s health.Sample
		if s, err = src.Sample(ctx, r.GPU); err == nil {
			resp.Sample = &s
		}
	case verbEvents:
		resp.Events, err = src.Events(ctx)
	case verbProcesses:
		resp.Processes, err = src.Processes(ctx, r.GPU)
	default:
		err = errs.Unimplemented.Errorf("verb %q", r.Verb)
	}
	if err != nil {
		resp.Class, resp.Error = errs.Of(err), err.Error()
	}
	return resp
}

// failure is the error in a response, with its class.
func (r response) failure() error {
	if r.Error == "" {
		return nil
	}
	return r.Class.Wrap(errors.New(r.Error))
}
