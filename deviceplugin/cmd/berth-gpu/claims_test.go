package main

import (
	"log/slog"
	"testing"
	"time"

	"github.com/berth-project/berth/deviceplugin/internal/discovery/fake"
	"github.com/berth-project/berth/deviceplugin/internal/dra/core"
	"github.com/berth-project/berth/deviceplugin/internal/inventory"
	"github.com/berth-project/berth/deviceplugin/internal/ledger"
	"github.com/berth-project/berth/deviceplugin/internal/node"
	"github.com/berth-project/berth/proto/errs"
)

// TestClaim: what a claim holds nobody else gets; what it watches is there, whoever has it, and is held by nobody for
// it; an instance of a GPU that somebody has whole is nobody's.
func TestClaim(t *testing.T) {
	src, err := fake.Open("t4x4")
	if err != nil {
		t.Fatal(err)
	}
	books, err := ledger.Open(t.TempDir(), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	d := &daemon{ledger: books, log: log, node: node.New(node.Config{Dir: t.TempDir(), Log: log, Now: time.Now}, src)}
	s := &node.State{Inventory: &inventory.Node{GPUs: []inventory.GPU{
		{UUID: "GPU-a"}, {UUID: "GPU-b"}, {UUID: "GPU-m", MIG: true, Instances: []inventory.Instance{{UUID: "MIG-1"}}},
	}}, Reasons: map[string]string{"GPU-b": "lost"}}
	for _, c := range []struct {
		what, claim string
		held, admin []string
		want        errs.Class
	}{
		{"a GPU", "one", []string{"GPU-a"}, nil, ""},
		{"the same again", "one", []string{"GPU-a"}, nil, ""},
		{"another's", "two", []string{"GPU-a"}, nil, errs.FailedPrecondition},
		{"another's, to watch", "watch", nil, []string{"GPU-a", "GPU-b", "MIG-1"}, ""},
		{"what is not there, to watch", "watch", nil, []string{"GPU-c"}, errs.NotFound},
		{"a divided one, to watch", "watch", nil, []string{"GPU-m"}, errs.NotFound},
		{"a sick one", "two", []string{"GPU-b"}, nil, errs.FailedPrecondition},
		{"an instance that is watched", "two", []string{"MIG-1"}, []string{"GPU-a"}, ""},
		{"nothing", "three", nil, nil, errs.InvalidArgument},
	} {
		err := d.claim(s, c.claim, core.Request{UUIDs: c.held, Admin: c.admin})
		if (err == nil) != (c.want == "") || err != nil && errs.Of(err) != c.want {
			t.Errorf("%s: %v", c.what, err)
		}
	}
	if got := books.Claims(); len(got) != 2 || len(got["watch"]) != 0 {
		t.Errorf("held: %v", got)
	}
	if err := books.Release("two"); err != nil {
		t.Fatal(err)
	}
	if err := books.Give(ledger.Offer{Resource: "nvidia.com/gpu", Shares: 1}, []string{"GPU-m"}); err != nil {
		t.Fatal(err)
	}
	if err := d.claim(s, "two", core.Request{UUIDs: []string{"MIG-1"}}); errs.Of(err) != errs.FailedPrecondition {
		t.Error("an instance of a GPU that a container has:", err)
	}
}
