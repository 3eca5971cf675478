package peering

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

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
