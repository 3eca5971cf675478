package peering

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth/cni/internal/bgp"
	"github.com/berth-project/berth/cni/internal/fabric"
)

const text = `
pools:
- {name: p, cidrs: [10.244.0.0/16, "fd00::/16"], mode: bgp}
- {name: q, cidrs: [10.245.0.0/16]}
bgp:
  asn: 64513
  passwordFile: /key
  peers:
  - {name: left, address: 192.0.2.254, asn: 65000, labels: {rack: a}, bfd: true, gtsm: 1}
  - {name: right, address: 192.0.2.253, asn: 65000, nodes: [n2]}
nodes:
- {name: n1, addresses: [192.0.2.1, "2001:db8::1"], podCIDRs: [10.244.1.0/24, 10.245.1.0/24, "fd00:1::/64"], labels: {rack: a}}
- {name: n2, addresses: [192.0.2.2, "2001:db8::2"], podCIDRs: [10.244.2.0/24]}
`

func secret(path string) (bgp.Secret, error) {
	if path == "/key" {
		return bgp.NewSecret("k3y"), nil
	}
	return bgp.Secret{}, nil
}

func TestCompile(t *testing.T) {
	f, err := fabric.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	c, remarks, err := compile(f, "n1", secret)
	if err := errors.Join(err, c.Validate()); err != nil || len(remarks) > 0 {
		t.Fatal(err, remarks)
	}
	if c.ASN != 64513 || c.RouterID != netip.MustParseAddr("192.0.2.1") || len(c.Announcements) != 2 || len(c.Pools) != 3 {
		t.Errorf("%+v", c)
	}
	// One session of each family with n2, and the left of the racks' routers.
	var names []string
	for _, p := range c.Peers {
		names = append(names, p.Name)
		if p.Name == "n2" && p.Password.Reveal() != "k3y" {
			t.Error("a session between nodes has no password")
		}
	}
	if got := strings.Join(names, " "); got != "n2 left n2" {
		t.Errorf("peers %s", got)
	}
	// Without a pool of that mode nobody speaks.
	f.Pools[0].Mode = fabric.VXLAN
	if c, _, err := compile(f, "n1", secret); err != nil || c.Enabled() {
		t.Errorf("%+v, %v", c, err)
	}
	// A node without IPv4 has an identifier all the same.
	if id := routerID(fabric.Node{Name: "x"}); !id.Is4() || id.IsUnspecified() {
		t.Errorf("router id %s", id)
	}
}

func TestSecretsAreRootsAlone(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, []byte("k3y\nand more"), 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err := readSecret(file); err != nil || s.Reveal() != "k3y" {
		t.Errorf("%q, %v", s.Reveal(), err)
	}
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := readSecret(file); err == nil || strings.Contains(err.Error(), "k3y") {
		t.Errorf("a key that all may read: %v", err)
	}
}

// TestServices: a node tells those that are its own, an address once, and takes others' for its peers' sake.
func TestServices(t *testing.T) {
	f, err := fabric.Parse([]byte(strings.Replace(text, "  peers:\n", `  serviceRanges: [10.96.0.0/12, "fd96::/112"]
  longLivedSeconds: 3600
  services:
  - {name: a/b, prefix: 10.96.0.10/32}
  - {name: a/shared, prefix: 10.96.0.10/32}
  - {name: a/here, prefix: "fd96::9/128", nodes: [n1]}
  - {name: a/there, prefix: 10.96.0.11/32, nodes: [n2]}
  peers:
`, 1)))
	if err != nil {
		t.Fatal(err)
	}
	c, remarks, err := compile(f, "n1", secret)
	if err := errors.Join(err, c.Validate()); err != nil || len(remarks) > 0 {
		t.Fatal(err, remarks)
	}
	var told []string
	for _, a := range c.Announcements {
		told = append(told, a.Prefix.String())
	}
	if got := strings.Join(told, " "); got != "10.244.1.0/24 fd00:1::/64 10.96.0.10/32 fd96::9/128" {
		t.Errorf("told %s", got)
	}
	if !c.InPools(netip.MustParsePrefix("10.96.0.11/32")) || c.Restart.LongLived != time.Hour {
		t.Errorf("%+v", c)
	}
}

// TestRules: a peer's filters arrive, and one that is wrong costs that peer alone.
func TestRules(t *testing.T) {
	with := func(rules string) (bgp.Config, []string) {
		f, err := fabric.Parse([]byte(strings.Replace(text, "gtsm: 1}", "gtsm: 1, "+rules+"}", 1)))
		if err != nil {
			t.Fatal(err)
		}
		c, remarks, err := compile(f, "n1", secret)
		if err != nil {
			t.Fatal(err)
		}
		return c, remarks
	}
	c, remarks := with(`import: [{action: accept, prefixes: [{cidr: 0.0.0.0/0, max: 0}], communities: ["64512:7", "1:2:3", no-export]}, {action: reject}],
    export: [{action: accept, addCommunities: ["65000:1"], med: 5, prepend: 2}]`)
	p, ok := c.Peer(netip.MustParseAddr("192.0.2.254"))
	if !ok || len(remarks) > 0 || len(p.Import) != 2 || len(p.Import[0].Communities) != 2 || len(p.Import[0].LargeCommunities) != 1 ||
		p.Import[0].Prefixes[0].Prefix.Bits() != 0 || p.Import[1].Action != bgp.Reject || len(p.Export) != 1 || *p.Export[0].Set.MED != 5 || p.Export[0].Set.Prepend != 2 {
		t.Errorf("%+v, %v, %q", p, ok, remarks)
	}
	for rules, want := range map[string]string{
		`import: [{action: maybe}]`:                                      "import[0].action",
		`import: [{action: accept, prefixes: [{cidr: 10.0.0.0}]}]`:       "import[0].prefixes[0].cidr",
		`import: [{action: accept, communities: ["1:2:3:4"]}]`:           "import[0].communities",
		`export: [{action: accept, addCommunities: ["1:2:4294967296"]}]`: "export[0].addCommunities",
		`export: [{action: accept, prepend: 11}]`:                        "export[0].set.prepend",
	} {
		c, remarks := with(rules)
		if _, there := c.Peer(netip.MustParseAddr("192.0.2.254")); there || len(remarks) != 1 || !strings.Contains(remarks[0], "(left): "+want) {
			t.Errorf("%s: %q, %v", rules, remarks, there)
		}
		if len(c.Peers) != 2 {
			t.Errorf("%s: the other peers went too: %+v", rules, c.Peers)
		}
	}
}
