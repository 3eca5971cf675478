package view

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth/deviceplugin/internal/alloc"
	"github.com/berth-project/berth/deviceplugin/internal/cdi"
	"github.com/berth-project/berth/deviceplugin/internal/discovery/fake"
	"github.com/berth-project/berth/deviceplugin/internal/driver"
	"github.com/berth-project/berth/deviceplugin/internal/health"
	"github.com/berth-project/berth/deviceplugin/internal/inventory"
	"github.com/berth-project/berth/deviceplugin/internal/ledger"
	"github.com/berth-project/berth/deviceplugin/internal/node"
	"github.com/berth-project/berth/deviceplugin/internal/policy"
	"github.com/berth-project/berth/deviceplugin/internal/server"
)

var update = flag.Bool("update", false, "write the golden files")

// collected is a view of a node with one divided GPU of two, of which the other is lost.
func collected(t *testing.T, holders Holders) (View, *node.State) {
	t.Helper()
	src, err := fake.Open("h100-mig")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	n := node.New(node.Config{
		Dir: dir, CDIDir: filepath.Join(dir, "cdi"), Poll: time.Hour, Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return at },
		Driver: node.Driver{Root: driver.Root{Host: dir, View: dir}, Dev: "/dev", DevView: filepath.Join(dir, "dev"), Majors: src.Majors, Optional: true},
		Policy: policy.Policy{MIG: policy.MIGMixed},
	}, src)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	s, err := n.Await(ctx)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	regs := []server.Registration{{Resource: "nvidia.com/gpu", Watched: 2, Times: 2, At: at}}
	return Collect(t.Context(), n, regs, holders), s
}

func held(context.Context) ([]Holder, error) {
	return []Holder{
		{Namespace: "ml", Pod: "train-0", Container: "main", Resource: "nvidia.com/gpu", ID: "GPU-be27f000-0000-4000-8000-000000000201"},
		{Namespace: "ml", Pod: "infer", Container: "c", Resource: "nvidia.com/mig-1g.10gb", ID: "MIG-be27f000-0000-4000-8000-000007000000::1"},
	}, nil
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if want, err := os.ReadFile(file); err != nil || !bytes.Equal(want, got) {
		t.Errorf("%s (%v):\n%s", file, err, got)
	}
}

func TestGolden(t *testing.T) {
	v, s := collected(t, held)
	v.GPUs[1].Health = health.State{Phase: health.Sick, Conditions: map[string]string{"lost": "it does not answer on its bus"}, XIDs: map[int]int{79: 1, 31: 4}}
	v.GPUs[1].Reason = "lost: it does not answer on its bus"
	v.Override = "shared"
	v.Claims = map[string][]string{"7d0b3c4e-0000-4000-8000-00000000c1a1": {"MIG-be27f000-0000-4000-8000-000002000000"}}
	v.Problems = nil // the paths of a temporary directory
	var table, metrics bytes.Buffer
	if err := errors.Join(v.Table(&table), v.Metrics(&metrics)); err != nil {
		t.Fatal(err)
	}
	golden(t, "table.txt", table.Bytes())
	golden(t, "metrics.txt", metrics.Bytes())
	golden(t, "labels.txt", Feature(Labels(s.Inventory, s.Plan, policy.MIGMixed)))
	form := regexp.MustCompile(`^[a-z_]+(\{([a-z]+="[^"\n]*",?)*\})? [0-9.e+-]+$`)
	for l := bufio.NewScanner(&metrics); l.Scan(); {
		if !strings.HasPrefix(l.Text(), "#") && !form.MatchString(l.Text()) {
			t.Errorf("no line of the exposition format: %s", l.Text())
		}
	}
}

func TestNoKubelet(t *testing.T) {
	v, _ := collected(t, func(context.Context) ([]Holder, error) { return nil, errors.New("connection refused") })
	var b strings.Builder
	if err := v.Table(&b); err != nil || !strings.Contains(b.String(), "not known: connection refused") {
		t.Error(b.String(), err)
	}
}

func TestLabelsOfSharing(t *testing.T) {
	_, s := collected(t, held)
	plan := policy.Compile(s.Inventory, policy.Policy{Rules: []policy.Rule{{Name: "nvidia.com/gpu", Sharing: policy.TimeSlicing, Replicas: 4, Spread: alloc.Spread}}}, nil)
	l := Labels(s.Inventory, plan, policy.MIGNone)
	if l["nvidia.com/gpu.product"] != "NVIDIA-H100-80GB-HBM3-SHARED" || l["nvidia.com/mps.capable"] != "false" {
		t.Error(l)
	}
	if l["nvidia.com/gpu.sharing-strategy"] != "time-slicing" || l["nvidia.com/gpu.replicas"] != "4" {
		t.Error(l)
	}
	for _, text := range []string{"", "a b/c", "NVIDIA\x00H100", strings.Repeat("x-", 60), "---"} {
		if v := labelValue(text); len(v) > 63 || strings.Trim(v, "-_.") != v || strings.ContainsAny(v, " /\x00") {
			t.Errorf("%q became %q", text, v)
		}
	}
}

// TestLabelsOfSingle: instances in the GPUs' place are described in the GPUs' labels, as feature discovery does it.
func TestLabelsOfSingle(t *testing.T) {
	n := &inventory.Node{Machine: "DGX\tH100", GPUs: []inventory.GPU{{UUID: "GPU-1", Clique: "7d7a.3", Product: "NVIDIA H100", Memory: 80 << 30, Mode: "compute", MIG: true, Instances: []inventory.Instance{
		{UUID: "MIG-1", Profile: "2c.3g.40gb", Memory: 40 << 30, Engines: inventory.Engines{Multiprocessors: 32, Copy: 3}}, {UUID: "MIG-2", Profile: "2c.3g.40gb", Memory: 40 << 30},
	}}}}
	l := Labels(n, policy.Compile(n, policy.Policy{MIG: policy.MIGSingle}, nil), policy.MIGSingle)
	for key, want := range map[string]string{
		"gpu.product": "NVIDIA-H100-MIG-2c.3g.40gb", "gpu.count": "2", "gpu.memory": "40960", "gpu.slices.gi": "3", "gpu.slices.ci": "2",
		"gpu.multiprocessors": "32", "gpu.engines.copy": "3", "gpu.engines.ofa": "0", "gpu.clique": "7d7a.3",
		"gpu.machine": "DGX-H100", "gpu.mode": "compute", "mig.strategy": "single", "mig-2c.3g.40gb.count": "2",
	} {
		if l["nvidia.com/"+key] != want {
			t.Errorf("%s=%q, want %q", key, l["nvidia.com/"+key], want)
		}
	}
}

func TestInUse(t *testing.T) {
	all, err := held(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := InUse(append(all, Holder{Resource: "nvidia.com/gpu.shared", ID: cdi.Kind + "=GPU-1::3"})); len(got) != len(all)+1 ||
		got[0] != (ledger.Use{Resource: all[0].Resource, ID: all[0].ID}) || got[len(all)] != (ledger.Use{Resource: "nvidia.com/gpu.shared", ID: "GPU-1::3"}) {
		t.Error(got)
	}
}
