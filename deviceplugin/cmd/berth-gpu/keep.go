package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/berth-project/berth/deviceplugin/internal/config"
	"github.com/berth-project/berth/deviceplugin/internal/driver"
	"github.com/berth-project/berth/deviceplugin/internal/mps"
	"github.com/berth-project/berth/deviceplugin/internal/policy"
	"github.com/berth-project/berth/deviceplugin/internal/view"
	"github.com/berth-project/berth/internal/atomicfile"
)

// How often the ledger learns what containers have: while there is something to come back, or the kubelet has not
// been asked since our start, and otherwise.
const (
	reconcileSoon  = time.Second
	reconcileEvery = 30 * time.Second
)

// firstLook is how long our start waits for the kubelet's word of what containers have.
const firstLook = 500 * time.Millisecond

// learn asks the kubelet before anything is offered: containers may have devices under an offer that is no more. A
// kubelet that is not there, as before it at a boot, has no containers that run.
func (d *daemon) learn(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, firstLook)
	defer cancel()
	held, err := d.holders(ctx)
	if err != nil {
		d.log.Info("what containers have is not known yet", "error", err)
		return
	}
	d.ledger.Reconcile(view.InUse(held))
}

// reconcile keeps the ledger what the kubelet says. A kubelet that does not answer changes nothing.
func (d *daemon) reconcile(ctx context.Context) error {
	t := time.NewTicker(reconcileSoon)
	defer t.Stop()
	var last time.Time // of an answer
	for {
		if time.Since(last) >= reconcileEvery || len(d.ledger.Given()) > 0 {
			if err := d.look(ctx); err != nil {
				d.log.Debug("the ledger is not reconciled", "error", err)
			} else {
				last = time.Now()
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

// look asks the kubelet who has what, once.
func (d *daemon) look(ctx context.Context) error {
	held, err := d.holders(ctx)
	if err == nil && d.ledger.Reconcile(view.InUse(held)) {
		d.node.Poke()
	}
	return err
}

// supervisor is of the MPS daemons. A daemon that begins or ceases to serve starts a round.
func (d *daemon) supervisor(conf config.Config, root driver.Root) (*mps.Supervisor, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	libraries := ""
	if l := library(conf); l != "" {
		libraries = filepath.Dir(l)
	}
	return mps.New(mps.Config{
		Self: self, Control: driver.Program(root, "nvidia-cuda-mps-control"), Libraries: libraries, Dir: mpsDir(conf),
		Check: 2 * time.Second, Answer: 5 * time.Second, Pause: time.Second, Log: d.log, Changed: func() { d.node.Poke() },
	}), nil
}

func mpsDir(conf config.Config) string { return filepath.Join(conf.State, "mps") }

// share has a daemon run for each GPU that is shared by MPS, sick or not: its clients may still be well. One
// whose clients' memory is not known has none: they would have 0 MiB.
func (d *daemon) share(ctx context.Context) error {
	for {
		s, changed := d.node.State()
		var want []mps.GPU
		for _, r := range s.Plan.Resources {
			for i, x := range r.Devices {
				first := i == 0 || r.Devices[i-1].UUID != x.UUID
				if s.Live && r.Rule.Sharing == policy.MPS && first && r.Rule.ClientMemory(x) > 0 {
					want = append(want, mps.GPU{UUID: x.UUID, Memory: r.Rule.ClientMemory(x), Replicas: r.Rule.Replicas})
				}
			}
		}
		d.mps.Set(want)
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

// label keeps the feature file what the node is.
func (d *daemon) label(ctx context.Context) error {
	if d.labels == "" {
		<-ctx.Done()
		return nil
	}
	for {
		s, changed := d.node.State()
		if s.Live {
			want := view.Feature(view.Labels(s.Inventory, s.Plan, d.node.Policy().MIG))
			have, err := os.ReadFile(d.labels)
			if !bytes.Equal(have, want) || err != nil {
				err = errors.Join(os.MkdirAll(filepath.Dir(d.labels), 0o755), atomicfile.Write(d.labels, want, 0o644)) //nolint:gosec // node-feature-discovery reads it
			}
			if err != nil {
				d.log.Error("labels are not written", "file", d.labels, "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}
