package agent

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth/cni/internal/fabric"
	"github.com/berth-project/berth/cni/internal/netdconf"
	"github.com/berth-project/berth/cni/internal/overlay"
	"github.com/berth-project/berth/internal/atomicfile"
)

const text = `
pools: [{name: p, cidrs: [10.244.0.0/16, "fd00:10::/48"]}]
nodes:
- {name: n1, addresses: [192.0.2.1, "2001:db8::1"], podCIDRs: [10.244.1.0/24, "fd00:10:0:1::/64"]}
- {name: n2, addresses: [192.0.2.2], podCIDRs: [10.244.2.0/24]}
`

func parsed(t *testing.T) *fabric.Fabric {
	t.Helper()
	f, err := fabric.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func newAgent(t *testing.T, node string) *Agent {
	t.Helper()
	conf := netdconf.Default()
	conf.Node, conf.Root, conf.State, conf.CNI.Dir = node, t.TempDir(), t.TempDir(), t.TempDir()
	return New(conf, File{Path: "fabric.yaml"}, nil, slog.New(slog.NewTextHandler(io.Discard, nil)), "test")
}

func TestCNIConfiguration(t *testing.T) {
	a, f := newAgent(t, "n1"), parsed(t)
	plan := &overlay.Plan{PodMTU: 1430, Taken: []netip.Addr{netip.MustParseAddr("10.244.1.1")}}
	if err := a.writeCNI(f, plan); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(a.conf.CNI.Dir, a.conf.CNI.File)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var c conflist
	if err := json.Unmarshal(b, &c); err != nil || c.CNIVersion != "1.1.0" || len(c.Plugins) != 1 {
		t.Fatalf("%s: %v", b, err)
	}
	p := c.Plugins[0]
	if p.Type != "berth" || p.MTU != 1430 || !p.IPMasq || len(p.Ranges) != 2 || len(p.MasqueradeExclude) != 2 || !p.Capabilities["portMappings"] {
		t.Errorf("%+v", p)
	}
	if len(p.Ranges[0].Exclude) != 1 || len(p.Ranges[1].Exclude) != 0 {
		t.Errorf("the bridge's address: %+v", p.Ranges)
	}
	// What is right is not written again, what cannot be made is left as it is.
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(a.writeCNI(f, plan), a.writeCNI(f, &overlay.Plan{})); err != nil {
		t.Fatal(err)
	}
	if after, err := os.Stat(path); err != nil || !os.SameFile(before, after) || !after.ModTime().Equal(before.ModTime()) {
		t.Errorf("written again: %v", err)
	}
}

func TestAcceptKeepsTheLastGood(t *testing.T) {
	a := newAgent(t, "n1")
	if !a.accept(Delivery{Fabric: parsed(t)}) {
		t.Fatal("a good fabric is refused")
	}
	bad := parsed(t)
	bad.Nodes[0].Name = "n9"
	wrong := parsed(t)
	wrong.Pools[0].Mode = "pigeon"
	for name, d := range map[string]Delivery{
		"an error": {Err: errors.New("no such file")}, "without this node": {Fabric: bad}, "an empty one": {Fabric: &fabric.Fabric{}}, "a wrong one": {Fabric: wrong},
	} {
		if a.accept(d) {
			t.Errorf("%s was taken", name)
		}
		if s := a.Status(); s.Refused == "" || !strings.Contains(s.String(), "REFUSED") {
			t.Errorf("%s: status says %q", name, s.Refused)
		}
	}
	if _, ok := a.live.fabric.Node("n1"); !ok || a.live.counts.refusals != 4 {
		t.Errorf("%d refusals, the fabric is %+v", a.live.counts.refusals, a.live.fabric)
	}
}

// TestSnapshot: a start without the source has the last good fabric; a damaged or a stranger's file is no fabric.
func TestSnapshot(t *testing.T) {
	a := newAgent(t, "n1")
	want := parsed(t)
	want.Nodes[0].VTEPMAC = fabric.MAC{2, 0, 0, 0, 0, 1}
	if !a.accept(Delivery{Fabric: want, Names: overlay.FlannelNames(1)}) {
		t.Fatal("refused")
	}
	again := New(a.conf, a.source, nil, a.log, "test")
	if why := again.restore(); why == noReason {
		t.Fatal("not restored")
	}
	n, _ := again.live.fabric.Node("n1")
	if n.MAC(false) != want.Nodes[0].VTEPMAC || again.live.names != overlay.FlannelNames(1) || len(n.PodCIDRs) != 2 {
		t.Errorf("%+v, %+v", n, again.live.names)
	}
	stranger := New(a.conf, a.source, nil, a.log, "test")
	stranger.conf.Node = "n9"
	b, err := os.ReadFile(a.snapshotFile())
	if err != nil || stranger.restore() != noReason {
		t.Errorf("a snapshot of others was taken, %v", err)
	}
	for i := 0; i < len(b); i += 7 {
		b[i] ^= 0x10
		if err := os.WriteFile(a.snapshotFile(), b, 0o600); err != nil {
			t.Fatal(err)
		}
		b[i] ^= 0x10
		if _, err := readSnapshot(a.snapshotFile()); err == nil {
			t.Fatalf("byte %d flipped: taken", i)
		}
	}
	if err := atomicfile.WriteSealed(a.snapshotFile(), []byte("names: {}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readSnapshot(a.snapshotFile()); err == nil {
		t.Error("a snapshot without a fabric was taken")
	}
}

// TestFile: written in place, replaced by rename, gone and back.
func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fabric.yaml")
	write := func(s string) {
		t.Helper()
		if err := errors.Join(os.WriteFile(path+".new", []byte(s), 0o600), os.Rename(path+".new", path)); err != nil {
			t.Fatal(err)
		}
	}
	write(text)
	ctx, cancel := context.WithCancel(t.Context())
	got, done := make(chan Delivery), make(chan error)
	go func() {
		done <- File{Path: path}.Run(ctx, func(d Delivery) {
			select {
			case got <- d:
			case <-ctx.Done():
			}
		})
	}()
	next := func() Delivery {
		t.Helper()
		select {
		case d := <-got:
			return d
		case <-time.After(5 * time.Second):
			t.Fatal("nothing was delivered")
		}
		return Delivery{}
	}
	if d := next(); d.Err != nil || len(d.Fabric.Nodes) != 2 {
		t.Errorf("at first: %+v", d)
	}
	write("pools: 7")
	if d := next(); d.Err == nil || !strings.Contains(d.Err.Error(), path) {
		t.Errorf("a bad file: %+v", d)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if d := next(); d.Err != nil {
		t.Errorf("written in place: %v", d.Err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if d := next(); !errors.Is(d.Err, os.ErrNotExist) {
		t.Errorf("gone: %+v", d)
	}
	write(text)
	if d := next(); d.Err != nil {
		t.Errorf("back: %v", d.Err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestNamespacesWithoutBlock: pods of a namespace whose pool has no block on this node are not given others' addresses.
func TestNamespacesWithoutBlock(t *testing.T) {
	f := parsed(t)
	f.Pools = append(f.Pools,
		fabric.Pool{Name: "a", CIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}, Namespaces: []string{"y", "x"}, NoMasquerade: true},
		fabric.Pool{Name: "b", CIDRs: []netip.Prefix{netip.MustParsePrefix("10.2.0.0/16")}, Namespaces: []string{"x"}},
	)
	read := func() (p plugin) {
		conf := netdconf.Default()
		conf.Node = "n1"
		b, ok, err := compileCNI(conf, f, &overlay.Plan{PodMTU: 1450})
		var c conflist
		if err := errors.Join(err, json.Unmarshal(b, &c)); err != nil || !ok {
			t.Fatal(err, ok)
		}
		return c.Plugins[0]
	}
	if p := read(); strings.Join(p.Reserved, " ") != "x y" || len(p.Ranges) != 2 {
		t.Errorf("%+v", p)
	}
	f.Nodes[0].PodCIDRs = append(f.Nodes[0].PodCIDRs, netip.MustParsePrefix("10.1.1.0/26"))
	if p := read(); strings.Join(p.Reserved, " ") != "x" || len(p.Ranges) != 3 || strings.Join(p.Ranges[2].Namespaces, " ") != "y x" || p.Ranges[2].IPMasq == nil || !p.IPMasq {
		t.Errorf("%+v", p)
	}
}
