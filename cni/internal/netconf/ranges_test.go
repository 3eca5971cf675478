package netconf

import (
	"net/netip"
	"strings"
	"testing"
)

// TestRangesFor: a namespace's pods have their addresses from its ranges and nowhere else, and nobody else has; by family.
func TestRangesFor(t *testing.T) {
	c, err := Parse([]byte(`{"cniVersion":"1.1.0","name":"n","type":"berth","ranges":[
		{"subnet":"10.0.0.0/24"},{"subnet":"fd00::/64"},
		{"subnet":"10.1.0.0/24","namespaces":["a","b"],"ipMasq":false},{"subnet":"10.2.0.0/24","namespaces":["b"]}]}`))
	if err != nil {
		t.Fatal(err)
	}
	for namespace, want := range map[string]string{
		"a": "10.1.0.0/24 |", "b": "10.1.0.0/24 10.2.0.0/24 |", "c": "10.0.0.0/24 | fd00::/64", "": "10.0.0.0/24 | fd00::/64",
	} {
		var got []string
		for _, v6 := range []bool{false, true} {
			if v6 {
				got = append(got, "|")
			}
			for _, r := range c.RangesFor(namespace, v6) {
				got = append(got, r.Subnet.String())
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%q: %v, want %s", namespace, got, want)
		}
	}
	a := netip.MustParseAddr
	if !c.Masquerade() || !c.Masquerade(a("10.0.0.9"), a("fd00::9")) || c.Masquerade(a("10.1.0.9")) || !c.Masquerade(a("10.2.0.9")) {
		t.Error("a range's ipMasq")
	}
	for _, bad := range []string{`"namespaces":[""]`, `"namespaces":"a"`, `"namespace":["a"]`} {
		if _, err := Parse([]byte(`{"cniVersion":"1.1.0","name":"n","type":"berth","ranges":[{"subnet":"10.0.0.0/24",` + bad + `}]}`)); err == nil || !strings.Contains(err.Error(), "namespace") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}
