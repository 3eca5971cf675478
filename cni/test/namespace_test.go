package test

import (
	"strings"
	"testing"
)

// TestNamespaces: a namespace's pods get addresses of its ranges, whoever asks for one of them by name does not, and
// where the ranges are not there yet its pods are refused, with nothing left.
func TestNamespaces(t *testing.T) {
	n := newNode(t)
	conf := n.conf("1.1.0", `,"reservedNamespaces":["later"],"ranges":[{"subnet":"10.99.0.0/24"},{"subnet":"10.98.0.0/29","namespaces":["team"]}]`)
	before := n.census(t)
	add := func(id, args string) (string, error) {
		out, err := n.run(call{verb: "ADD", id: id, netns: newNS(t).Path(), conf: conf, args: args})
		return string(out), err
	}
	for id, c := range map[string]struct{ args, want string }{
		"team": {"K8S_POD_NAMESPACE=team", `"10.98.0.`}, "other": {"K8S_POD_NAMESPACE=other", `"10.99.0.`}, "nobody": {"", `"10.99.0.`},
		"named": {"K8S_POD_NAMESPACE=team;IP=10.98.0.5", `"10.98.0.5/`},
	} {
		if out, err := add(id, c.args); err != nil || !strings.Contains(out, c.want) {
			t.Errorf("%s: %s %v, want %s", id, out, err, c.want)
		}
	}
	for id, c := range map[string]struct {
		args, want string
		code       int
	}{
		"thief": {"K8S_POD_NAMESPACE=other;IP=10.98.0.6", "10.98.0.6 is in a range of other namespaces", 7},
		"later": {"K8S_POD_NAMESPACE=later", "no block of it yet", 11},
	} {
		if out, err := add(id, c.args); code(err) != c.code || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %s %v, want code %d, %q", id, out, err, c.code, c.want)
		}
	}
	for _, id := range []string{"team", "other", "nobody", "named", "thief", "later"} {
		if _, err := n.run(call{verb: "DEL", id: id, conf: conf}); err != nil {
			t.Errorf("DEL %s: %v", id, err)
		}
	}
	if after := n.census(t); after != before {
		t.Errorf("left:\n%s\nwas\n%s", after, before)
	}
}
