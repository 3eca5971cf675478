package conform

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types/create"
)

func (t *T) about() {
	out, err := t.exec(call{file: t.file(t.last()), without: []string{"CNI_COMMAND"}})
	if err != nil || len(out) > 0 {
		t.Failf("stdout %q, %v", out, err)
	}
}

func (t *T) version() {
	out, err := t.exec(call{verb: "VERSION", file: t.file(t.last()), stdin: `{"cniVersion":"1.0.0"}`})
	if err != nil {
		t.Fatalf("%v", err)
	}
	var v struct {
		CNIVersion        string
		SupportedVersions []string
	}
	if err := json.Unmarshal(out, &v); err != nil || v.CNIVersion == "" {
		t.Fatalf("%q: %v", out, err)
	}
	for _, want := range t.versions() {
		if !slices.Contains(v.SupportedVersions, want) {
			t.Failf("%s is not among %v", want, v.SupportedVersions)
		}
	}
}

// life is an attachment's life in one version, as the reference library reads its results.
func (t *T) life(version string) {
	before := t.warmIn(version)
	a := t.attach(version, nil)
	r, err := create.Create(version, a.final())
	if err != nil {
		t.Fatalf("the reference library refuses the result: %v: %s", err, a.final())
	}
	if r.Version() != version {
		t.Failf("the result is in version %s", r.Version())
	}
	if t.Addrs || t.Name() == "static" {
		if !strings.Contains(string(a.final()), "10.77.0.") {
			t.Failf("the result has no address: %s", a.final())
		}
	}
	if t.Makes {
		out, err := a.ns.sh("ip -o addr show eth0")
		if err != nil || !strings.Contains(out, "10.77.0.") {
			t.Failf("the interface: %s, %v", out, err)
		}
	}
	_, err = t.verb(a, "CHECK", t.finalConf(a))
	switch {
	case version >= "0.4.0" && err != nil:
		t.Failf("CHECK: %v", err)
	case version < "0.4.0" && code(err) != 1:
		t.Failf("CHECK, which the version has not got: %v, want code 1", err)
	}
	if version < "1.1.0" {
		for _, verb := range []string{"STATUS", "GC"} {
			if _, err := t.verb(a, verb, t.finalConf(a)); code(err) != 1 {
				t.Failf("%s, which the version has not got: %v, want code 1", verb, err)
			}
		}
	}
	t.detach(a, nil)
	t.nothingLeft(before, "DEL")
	if t.Makes {
		if out, _ := a.ns.sh("ip -o link"); strings.Contains(out, "eth0") {
			t.Failf("after DEL the container has %s", out)
		}
	}
}

func (t *T) warmIn(version string) []string {
	if version < "1.0.0" {
		t.detach(t.attach(version, nil), nil)
	}
	return t.warm()
}

func (t *T) deletions() {
	before := t.warm()
	a := t.attach("1.0.0", nil)
	for _, c := range []struct {
		name   string
		change func(*call)
	}{
		{"first", nil},
		{"second", nil},
		{"without CNI_NETNS", func(c *call) { c.netns = "" }},
		{"without prevResult", func(c *call) { c.stdin = withPrev(c.stdin, nil) }},
		{"without both", func(c *call) { c.netns, c.stdin = "", withPrev(c.stdin, nil) }},
	} {
		n := len(t.fails)
		t.detach(a, c.change)
		for i := n; i < len(t.fails); i++ {
			t.fails[i] = c.name + ": " + t.fails[i]
		}
	}
	t.nothingLeft(before, "DEL")
}

func (t *T) goneNetns() {
	before := t.warm()
	a := t.attach("1.0.0", nil)
	a.ns.vanish()
	t.detach(a, nil)
	t.nothingLeft(before, "DEL")
}

func (t *T) noNetns() {
	before := t.warm()
	a := t.attach("1.0.0", nil)
	t.detach(a, func(c *call) { c.netns, c.stdin = "", withPrev(c.stdin, nil) })
	a.ns.vanish() // now the kernel takes what it takes by itself
	t.nothingLeft(before, "DEL, and the namespace's end,")
}

func (t *T) neverAdded() {
	before := t.warm()
	a, prev := t.base("1.0.0")
	if _, err := t.verb(a, "DEL", t.conf(len(t.Chain)-1, "1.0.0", prev, nil)); err != nil {
		t.Failf("DEL: %v", err)
	}
	for i := len(t.Chain) - 2; i >= 0; i-- {
		if _, err := t.exec(call{verb: "DEL", file: t.file(t.Chain[i]), id: a.id, netns: a.ns.Path, stdin: a.confs[i]}); err != nil {
			t.Failf("DEL: %v", err)
		}
	}
	t.nothingLeft(before, "DEL")
}

func (t *T) addTwice() {
	before := t.warm()
	a := t.attach("1.0.0", nil)
	if _, err := t.verb(a, "ADD", a.confs[len(a.confs)-1]); err == nil {
		t.Failf("the second ADD succeeds")
	}
	if _, err := t.verb(a, "CHECK", t.finalConf(a)); err != nil {
		t.Failf("after the refused ADD CHECK says %v", err)
	}
	t.detach(a, nil)
	t.nothingLeft(before, "DEL")
}

func (t *T) checkFinds() {
	for _, c := range []struct{ name, inside, host string }{
		{"the address", "ip addr del %s dev eth0", ""},
		{"the default route", "ip route del default", ""},
		{"the interface", "ip link del eth0", ""},
		{"nftables and iptables", "", "nft flush ruleset"},
	} {
		a := t.attach("1.0.0", nil)
		var err error
		if c.inside != "" {
			_, err = a.ns.sh(strings.ReplaceAll(c.inside, "%s", address(a)))
		} else {
			_, err = t.host.sh(c.host)
		}
		if err != nil {
			t.Fatalf("%v", err)
		}
		if _, err := t.verb(a, "CHECK", t.finalConf(a)); err == nil {
			t.Failf("CHECK does not find that %s is gone", c.name)
		}
		t.detach(a, nil)
	}
}

// address is the attachment's IPv4 address on its interface, with its prefix length.
func address(a *attachment) string {
	out, err := a.ns.sh("ip -o -4 addr show eth0")
	if err != nil {
		return ""
	}
	_, rest, _ := strings.Cut(out, "inet ")
	addr, _, _ := strings.Cut(rest, " ")
	if !strings.Contains(addr, "/") {
		addr += "/32"
	}
	return addr
}

// ipOf is the same without the prefix length.
func ipOf(a *attachment) string {
	ip, _, _ := strings.Cut(address(a), "/")
	return ip
}

func (t *T) needsPrevious() {
	a, _ := t.base("1.0.0")
	if _, err := t.verb(a, "ADD", t.conf(len(t.Chain)-1, "1.0.0", nil, nil)); err == nil {
		t.Failf("ADD succeeds")
	}
}

func (t *T) passesThrough() {
	a := t.attach("1.0.0", nil)
	var before, after struct {
		Interfaces []struct{ Name string }
		IPs        []any
		Routes     []any
	}
	_ = json.Unmarshal(a.results[len(a.results)-2], &before) // the reference library reads them in other cases
	_ = json.Unmarshal(a.final(), &after)
	if fmt.Sprint(before.IPs) != fmt.Sprint(after.IPs) || fmt.Sprint(before.Routes) != fmt.Sprint(after.Routes) {
		t.Failf("before %v, after %v", before, after)
	}
	for _, i := range before.Interfaces {
		if !slices.Contains(after.Interfaces, i) {
			t.Failf("interface %s is lost", i.Name)
		}
	}
}

func (t *T) checkNothing() {
	a, prev := t.base("1.0.0")
	if _, err := t.verb(a, "CHECK", t.conf(len(t.Chain)-1, "1.0.0", prev, nil)); err == nil {
		t.Failf("CHECK succeeds")
	}
}
