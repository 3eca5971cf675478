package main

import (
	"encoding/json"
	"net/http"
	"slices"

	"github.com/berth-project/berth/deviceplugin/internal/cdi"
	"github.com/berth-project/berth/deviceplugin/internal/dra/core"
	"github.com/berth-project/berth/deviceplugin/internal/inventory"
	"github.com/berth-project/berth/deviceplugin/internal/ledger"
	"github.com/berth-project/berth/deviceplugin/internal/node"
	"github.com/berth-project/berth/proto/errs"
)

// maxClaim bounds a request: a claim of every instance of sixteen GPUs is 6 KiB.
const maxClaim = 64 << 10

// serveClaims answers berth-gpu-dra, which knows the API server and nothing of GPUs: the ledger and the inventory
// are ours alone, so that both ways of giving GPUs away agree.
func (d *daemon) serveClaims(mux *http.ServeMux) {
	mux.HandleFunc("PUT /claims/{uid}", func(w http.ResponseWriter, r *http.Request) {
		var ask core.Request
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxClaim)).Decode(&ask); err != nil {
			core.Write(w, core.Answer{}, errs.InvalidArgument.Errorf("claim: %w", err))
			return
		}
		s, err := d.node.Await(r.Context())
		// what containers have is asked anew: after our restart, or the kubelet's, the ledger may not know it yet
		if lerr := d.look(r.Context()); lerr != nil {
			d.log.Warn("a claim is judged by what was known", "error", lerr)
		}
		if err == nil {
			err = d.claim(s, r.PathValue("uid"), ask)
		}
		var a core.Answer
		for _, u := range slices.Concat(ask.UUIDs, ask.Admin) {
			a.CDI = append(a.CDI, cdi.Name(u))
		}
		core.Write(w, a, err)
	})
	mux.HandleFunc("DELETE /claims/{uid}", func(w http.ResponseWriter, r *http.Request) {
		err := d.ledger.Release(r.PathValue("uid"))
		d.node.Poke()
		core.Write(w, core.Answer{}, err)
	})
}

// claim gives devices to a claim: each has to be there, healthy, and nobody else's. One that the claim already has
// is given again whatever its health: its pod runs. What it only watches has to be there, and is held by nobody for it.
func (d *daemon) claim(s *node.State, claim string, ask core.Request) error {
	if len(ask.UUIDs)+len(ask.Admin) == 0 || claim == "" {
		return errs.InvalidArgument.Errorf("a claim needs a uid and devices")
	}
	for _, u := range ask.Admin {
		if physical(s, u) == "" {
			return errs.NotFound.Errorf("claim %s: there is no device %q", claim, u)
		}
	}
	if len(ask.UUIDs) == 0 || slices.Equal(d.ledger.Claims()[claim], ask.UUIDs) {
		return nil
	}
	for i, u := range ask.UUIDs {
		if slices.Contains(ask.UUIDs[:i], u) {
			return errs.InvalidArgument.Errorf("claim %s: %s is named twice", claim, u)
		}
		gpu := physical(s, u)
		if gpu == "" {
			return errs.NotFound.Errorf("claim %s: there is no device %q", claim, u)
		}
		if why := s.Reasons[gpu]; why != "" {
			return errs.FailedPrecondition.Errorf("claim %s: %s is unhealthy: %s", claim, u, why)
		}
		if gpu == u {
			continue
		}
		if why := d.ledger.Held(ledger.Offer{}, gpu); why != "" { // whole, from before it was divided
			return errs.FailedPrecondition.Errorf("claim %s: the GPU of %s is %s", claim, u, why)
		}
	}
	if err := d.ledger.Claim(claim, ask.UUIDs); err != nil {
		return err
	}
	d.node.Poke()
	return nil
}

// physical is the GPU of a device that claims may have: itself, unless it is divided, or an instance's. "" is none.
func physical(s *node.State, uuid string) string {
	for _, g := range s.Inventory.GPUs {
		if g.UUID == uuid && !g.MIG || slices.ContainsFunc(g.Instances, func(in inventory.Instance) bool { return in.UUID == uuid }) {
			return g.UUID
		}
	}
	return ""
}
