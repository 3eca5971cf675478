package peering

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/berth-project/berth/cni/internal/bgp"
	"github.com/berth-project/berth/cni/internal/fabric"
)

// fake is a speaker that keeps what it was set to.
type fake struct{ sets []bgp.Config }

func (f *fake) Set(c bgp.Config) error {
	if err := c.Validate(); err != nil {
		return err
	}
	f.sets = append(f.sets, c)
	return nil
}
func (*fake) Changed() <-chan struct{}  { return nil }
func (*fake) Status() bgp.Status        { return bgp.Status{} }
func (*fake) Routes() []bgp.Route       { return nil }
func (*fake) Run(context.Context) error { return nil }
func (f *fake) now() bgp.Config         { return f.sets[len(f.sets)-1] }

// names are those of c's peers, sorted.
func names(c bgp.Config) string {
	var all []string
	for _, p := range c.Peers {
		all = append(all, p.Name)
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

func parse(t *testing.T, text string) *fabric.Fabric {
	t.Helper()
	f, err := fabric.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// TestPeersThatCannotBeHad are left out by name, and the others stay; a peer of another node is not looked at.
func TestPeersThatCannotBeHad(t *testing.T) {
	for _, c := range []struct{ peer, want, remark string }{
		{"{name: x, address: 192.0.2.99, asn: 65000, nodes: [n2], passwordFile: /none}", "left n2 n2", ""},
		{"{name: x, address: 192.0.2.99, asn: 65000, nodes: [n1], passwordFile: /none}", "left n2 n2", "bgp.peers[2] (x): file does not exist"},
		{"{name: x, address: 192.0.2.99, asn: 65000, nodes: [n1], gtsm: 1, multihop: 2}", "left n2 n2", "(x): multihop: cannot be together"},
		{"{name: x, address: 192.0.2.99, asn: 23456, nodes: [n1]}", "left n2 n2", "(x): asn: 23456"},
		{"{name: x, address: 192.0.2.254, asn: 65000, nodes: [n1]}", "left n2 n2", "is the address of peer left"},
		{"{name: x, address: 192.0.2.2, asn: 65000, nodes: [n1]}", "left n2 n2", "is the address of node n2"},
		{"{name: x, address: 192.0.2.99, asn: 65000, nodes: [n1]}", "left n2 n2 x", ""},
	} {
		f := parse(t, text)
		var extra fabric.BGPPeer
		if err := yaml.Unmarshal([]byte(c.peer), &extra); err != nil {
			t.Fatal(err)
		}
		f.BGP.Peers = append(f.BGP.Peers, extra)
		got, remarks, err := compile(f, "n1", func(path string) (bgp.Secret, error) {
			if path == "/none" {
				return bgp.Secret{}, os.ErrNotExist
			}
			return secret(path)
		})
		if err := errors.Join(err, got.Validate()); err != nil {
			t.Fatal(err)
		}
		said := strings.Join(remarks, "\n")
		if names(got) != c.want || c.remark == "" && said != "" || !strings.Contains(said, c.remark) {
			t.Errorf("%s: peers %s, want %s; remarks %q, want %q", c.peer, names(got), c.want, said, c.remark)
		}
	}
}

// TestPasswordsComeLateAndRotate without a new fabric; a file that is away again ends no session, and the same again is
// no new version.
func TestPasswordsComeLateAndRotate(t *testing.T) {
	dir := t.TempDir()
	mesh, left := filepath.Join(dir, "mesh"), filepath.Join(dir, "left")
	f := parse(t, strings.ReplaceAll(strings.ReplaceAll(text, "/key", mesh), "bfd: true", "bfd: true, passwordFile: "+left))
	inner := &fake{}
	s := &Speaker{opt: Options{Log: slog.New(slog.NewTextHandler(io.Discard, nil))}, keys: map[string]bgp.Secret{}, inner: inner}
	write := func(path, key string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(key), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	set := func(remarks, versions int, peers string) {
		t.Helper()
		got, err := s.Set(f, "n1")
		if err != nil || len(got) != remarks || len(inner.sets) != versions || names(inner.now()) != peers {
			t.Errorf("%v, remarks %q, %d versions, peers %s; want %d remarks, %d versions, peers %s",
				err, got, len(inner.sets), names(inner.now()), remarks, versions, peers)
		}
	}
	set(2, 1, "")
	set(2, 1, "") // the same
	write(left, "one")
	set(1, 2, "left")
	write(mesh, "m")
	set(0, 3, "left n2 n2")
	write(left, "two")
	set(0, 4, "left n2 n2")
	left254, _ := inner.now().Peer(f.BGP.Peers[0].Address)
	if key := left254.Password.Reveal(); key != "two" {
		t.Errorf("left's key is %q", key)
	}
	write(left, "") // half written
	if err := os.Remove(mesh); err != nil {
		t.Fatal(err)
	}
	set(2, 4, "left n2 n2")
	write(mesh, strings.Repeat("x", bgp.MaxPassword+1))
	write(left, "two")
	set(1, 4, "left n2 n2")
}
