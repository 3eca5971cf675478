package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/berth-project/berth/deviceplugin/internal/view"
	"github.com/berth-project/berth/internal/atomicfile"
)

// reconcileEvery is how often the ledger learns what containers gave back.
const reconcileEvery = 30 * time.Second

// reconcile keeps the ledger what the kubelet says. A kubelet that does not answer changes nothing.
func (d *daemon) reconcile(ctx context.Context) error {
	t := time.NewTicker(reconcileEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		held, err := d.holders(ctx)
		if err != nil {
			d.log.Debug("the ledger is not reconciled", "error", err)
			continue
		}
		d.ledger.Reconcile(view.InUse(held))
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
