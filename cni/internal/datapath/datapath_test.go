package datapath_test

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth/cni/internal/datapath"
	"github.com/berth-project/berth/cni/internal/fabric"
	"github.com/berth-project/berth/cni/internal/overlay"
	"github.com/berth-project/berth/cni/test/netlab"
)

// rig is a namespace with one link and a kernel open in it.
type rig struct {
	*netlab.NS
	t      *testing.T
	kernel *datapath.Kernel
}

func newRig(t *testing.T) *rig {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("needs root: network namespaces")
	}
	sw := netlab.NewSwitch(t)
	n := netlab.New(t)
	sw.Plug(n, "eth0", 1500, "192.0.2.1/24", "2001:db8::1/64")
	r := &rig{NS: n, t: t}
	r.reopen()
	return r
}

func (r *rig) reopen() {
	r.t.Helper()
	if err := r.Do(func() (err error) { r.kernel, err = datapath.Open(); return err }); err != nil {
		r.t.Fatal(err)
	}
	k := r.kernel
	r.t.Cleanup(func() { _ = k.Close() })
}

func nodes(n int) []fabric.Node {
	all := []fabric.Node{node(1)}
	for i := 2; i <= n; i++ {
		all = append(all, node(i))
	}
	return all
}

func node(i int) fabric.Node {
	return fabric.Node{
		Name: fmt.Sprintf("n%d", i),
		Addresses: []netip.Addr{
			netip.AddrFrom4([4]byte{192, 0, byte(2 + i>>8), byte(i)}),
			netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", i)),
		},
		PodCIDRs: []netip.Prefix{
			netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24),
			netip.MustParsePrefix(fmt.Sprintf("fd00:10:0:%x::/64", i)),
		},
	}
}

func fabricOf(mode fabric.Mode, all []fabric.Node) *fabric.Fabric {
	return &fabric.Fabric{
		Pools: []fabric.Pool{{Name: "p", Mode: mode, CIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00:10::/32")}}},
		Nodes: all,
	}
}

func (r *rig) apply(f *fabric.Fabric) []string {
	r.t.Helper()
	if err := f.Validate(); err != nil {
		r.t.Fatal(err)
	}
	links, err := r.kernel.Links()
	if err != nil {
		r.t.Fatal(err)
	}
	plan := overlay.Compile(overlay.Input{Fabric: f, Self: "n1", Links: links, Names: overlay.DefaultNames()})
	changes, err := r.kernel.Apply(plan, f.Tunnel)
	if err != nil {
		r.t.Fatalf("%v\nplan:\n%s", err, plan)
	}
	return changes
}

// holds is everything of ours that the kernel shows to others' tools.
func (r *rig) holds() string {
	return r.Run("ip -d -o link show type vxlan", "ip -o addr show", "ip route show proto 184", "ip -6 route show proto 184",
		"ip neigh show nud permanent", "bridge fdb show", "nft list ruleset")
}

func TestApplyIsWhatWasPlanned(t *testing.T) {
	r := newRig(t)
	r.apply(fabricOf(fabric.VXLAN, nodes(3)))
	has := r.holds()
	m := node(2)
	for _, want := range []string{
		"berth.vx4: <BROADCAST,MULTICAST,UP", "mtu 1450", "mtu 1430", "vxlan id 1 local 192.0.2.1", "nolearning", "alias berth-netd",
		"berth.vx4    inet 10.0.1.0/32", "inet6 fd00:10:0:1::/128",
		"10.0.2.0/24 via 10.0.2.0 dev berth.vx4 metric 184 onlink", "unreachable 10.0.1.0/24 metric 65000",
		"fd00:10:0:3::/64 via fd00:10:0:3:: dev berth.vx6", "unreachable fd00:10:0:1::/64 dev lo metric 65000",
		"10.0.2.0 dev berth.vx4 lladdr " + m.MAC(false).String() + " PERMANENT",
		m.MAC(false).String() + " dev berth.vx4 dst 192.0.2.2 self permanent",
		"elements = { 192.0.2.2, 192.0.2.3 }", "udp dport 8472",
	} {
		if !strings.Contains(has, want) {
			t.Errorf("%q is not in\n%s", want, has)
		}
	}
	// Once more, by an agent that was started anew: nothing is changed but the table, at one instant.
	before := r.holds()
	r.reopen()
	if changes := r.apply(fabricOf(fabric.VXLAN, nodes(3))); len(changes) != 1 || !strings.Contains(changes[0], "table berth-netd") {
		t.Errorf("a restart changed %v", changes)
	}
	if after := r.holds(); after != before {
		t.Errorf("before\n%s\nafter\n%s", before, after)
	}
	// Another mode, and then nothing at all.
	r.apply(fabricOf(fabric.HostGW, nodes(3)))
	has = r.holds()
	if strings.Contains(has, "berth.vx") || strings.Contains(has, "table inet") || !strings.Contains(has, "10.0.2.0/24 via 192.0.2.2 dev eth0 src 192.0.2.1") {
		t.Errorf("host-gw:\n%s", has)
	}
	r.apply(fabricOf(fabric.None, nodes(3)))
	if has := r.Run("ip route show proto 184", "ip -6 route show proto 184"); has != "" {
		t.Errorf("left: %s", has)
	}
}

func TestForeignObjectsStay(t *testing.T) {
	r := newRig(t)
	foreign := []string{
		"ip link add vx9 type vxlan id 9 dstport 4789 local 192.0.2.1", "ip link set vx9 up",
		"ip route add 10.0.2.0/24 via 192.0.2.77 metric 900", "ip route add 10.0.77.0/24 via 192.0.2.77",
		"nft add table inet other",
	}
	r.Run(foreign...)
	r.apply(fabricOf(fabric.VXLAN, nodes(2)))
	r.apply(fabricOf(fabric.None, nodes(2)))
	has := r.Run("ip -o link show", "ip route", "nft list ruleset")
	for _, want := range []string{"vx9", "10.0.2.0/24 via 192.0.2.77", "10.0.77.0/24", "table inet other"} {
		if !strings.Contains(has, want) {
			t.Errorf("%s is gone:\n%s", want, has)
		}
	}
	// A link of our name that is not ours is left alone and named.
	r.Run("ip link add berth.vx4 type vxlan id 77 dstport 9999 local 192.0.2.1")
	links, err := r.kernel.Links()
	if err != nil {
		t.Fatal(err)
	}
	f := fabricOf(fabric.VXLAN, nodes(2))
	plan := overlay.Compile(overlay.Input{Fabric: f, Self: "n1", Links: links, Names: overlay.DefaultNames()})
	if _, err := r.kernel.Apply(plan, f.Tunnel); err == nil || !strings.Contains(err.Error(), "is not ours") {
		t.Errorf("somebody's link was taken: %v", err)
	}
}

// TestRepairs breaks one thing after the other with others' tools; the next Apply must bring everything back.
func TestRepairs(t *testing.T) {
	r := newRig(t)
	f := fabricOf(fabric.VXLAN, nodes(3))
	r.apply(f)
	good := r.holds()
	m := node(2)
	for _, line := range []string{
		"ip route del 10.0.2.0/24 metric 184",
		"ip route replace 10.0.2.0/24 via 192.0.2.66 metric 184 proto 184",
		"ip route del unreachable 10.0.1.0/24 metric 65000",
		"ip -6 route del fd00:10:0:3::/64",
		"ip neigh del 10.0.2.0 dev berth.vx4",
		"ip neigh replace 10.0.2.0 lladdr 02:00:00:00:00:99 dev berth.vx4 nud permanent",
		"ip neigh add 10.0.99.0 lladdr 02:00:00:00:00:99 dev berth.vx4 nud permanent",
		"bridge fdb del " + m.MAC(false).String() + " dev berth.vx4",
		"bridge fdb add 02:00:00:00:00:98 dst 192.0.2.98 dev berth.vx4",
		"ip link set berth.vx4 address 02:00:00:00:00:97",
		"ip link set berth.vx4 mtu 1300",
		"ip link set berth.vx4 down",
		"ip link del berth.vx6",
		"ip link set berth.vx4 type vxlan learning local 192.0.2.200",
		"ip addr del 10.0.1.0/32 dev berth.vx4",
		"ip addr add 10.0.1.9/24 dev berth.vx4",
		"nft flush ruleset",
		"nft delete element inet berth-netd vtep4 { 192.0.2.2 }",
	} {
		r.Run(line)
		r.kernel.TableBroken()
		if changes := r.apply(f); len(changes) == 0 {
			t.Errorf("%s: was not seen", line)
		}
		if got := r.holds(); normal(got) != normal(good) {
			t.Fatalf("%s: got\n%s\nwant\n%s", line, got, good)
		}
	}
}

// normal leaves out indexes, which a device that was made anew cannot have again, and counters.
func normal(s string) string {
	var out []string
	for _, l := range strings.Split(s, "\n") {
		_, rest, ok := strings.Cut(l, ": ")
		if ok && len(l) > 0 && l[0] >= '0' && l[0] <= '9' {
			l = rest
		}
		l = strings.ReplaceAll(l, " tentative", "")
		out = append(out, l)
	}
	return strings.Join(slices.Sorted(slices.Values(out)), "\n")
}

// TestJoinTime: a thousand nodes, all at once, then one more.
func TestJoinTime(t *testing.T) {
	r := newRig(t)
	f := fabricOf(fabric.VXLAN, nodes(1000))
	start := time.Now()
	changes := r.apply(f)
	all := time.Since(start)
	f.Nodes = append(f.Nodes, node(1001))
	start = time.Now()
	more := r.apply(f)
	t.Logf("1,000 nodes in %s (%d changes), one more in %s (%d changes)", all, len(changes), time.Since(start), len(more))
	if len(more) != 7 { // of each family a neighbour, an entry and a route, and the table
		t.Errorf("one more node took %v", more)
	}
}
