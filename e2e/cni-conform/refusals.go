package conform

import (
	"strings"
)

// refused executes a call that must fail with one of the codes and words, and leave nothing.
func (t *T) refused(name string, c call, want []int, words ...string) {
	_, err := t.exec(c)
	got := code(err)
	ok := false
	for _, w := range want {
		ok = ok || got == w
	}
	if !ok || err == nil {
		t.Failf("%s: %v, want code %v", name, err, want)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Failf("%s: %q does not name %q", name, err, w)
		}
	}
}

func (t *T) badEnvironment() {
	before := t.warm()
	a, prev := t.base("1.0.0")
	good := call{verb: "ADD", file: t.file(t.last()), id: a.id, netns: a.ns.Path, stdin: t.conf(len(t.Chain)-1, "1.0.0", prev, nil)}
	mid := t.census()
	for _, c := range []struct {
		name   string
		change func(*call)
		word   string
	}{
		{"no CNI_CONTAINERID", func(c *call) { c.id = "" }, "CNI_CONTAINERID"},
		{"no CNI_NETNS", func(c *call) { c.netns = "" }, "CNI_NETNS"},
		{"no CNI_IFNAME", func(c *call) { c.without = []string{"CNI_IFNAME"} }, "CNI_IFNAME"},
		{"CNI_CONTAINERID ../x", func(c *call) { c.id = "../x" }, ""},
		{"CNI_IFNAME a/b", func(c *call) { c.ifname = "a/b" }, ""},
		{"CNI_IFNAME too long", func(c *call) { c.ifname = "abcdefghijklmnop" }, ""},
		{"CNI_COMMAND unknown", func(c *call) { c.verb = "FROB" }, ""},
	} {
		bad := good
		c.change(&bad)
		words := []string{}
		if c.word != "" {
			words = append(words, c.word)
		}
		t.refused(c.name, bad, []int{4}, words...)
	}
	t.nothingLeft(mid, "a refused ADD")
	t.detach(&attachment{id: a.id, ns: a.ns, confs: a.confs, results: append(a.results, prev)}, nil)
	t.nothingLeft(before, "DEL")
}

func (t *T) badNetns() {
	t.warm()
	a, prev := t.base("1.0.0")
	mid := t.census()
	conf := t.conf(len(t.Chain)-1, "1.0.0", prev, nil)
	if t.Name() == "host-local" || t.Name() == "static" {
		return // their namespace is not theirs to use
	}
	for _, c := range []struct{ name, path string }{
		{"a path that leads nowhere", "/run/netns/nowhere"},
		{"a file", "/etc/passwd"},
		{"the host's own", t.host.Path},
	} {
		if _, err := t.exec(call{verb: "ADD", file: t.file(t.last()), id: a.id, netns: c.path, stdin: conf}); err == nil {
			t.Failf("%s: ADD succeeds", c.name)
		}
		t.nothingLeft(mid, "ADD with "+c.name)
	}
}

func (t *T) badStdin() {
	t.warm()
	a, prev := t.base("1.0.0")
	mid := t.census()
	i := len(t.Chain) - 1
	for _, c := range []struct {
		name, stdin string
		codes       []int
	}{
		{"not JSON", "{", []int{6}},
		{"empty", "", []int{6}},
		{"no name", t.conf(i, "1.0.0", prev, Conf{"name": ""}), []int{7}},
		{"hostile name", t.conf(i, "1.0.0", prev, Conf{"name": "../../x"}), []int{7}},
		{"unknown version", t.conf(i, "9.9.9", prev, nil), []int{1}},
		{"prevResult of no kind", t.conf(i, "1.0.0", []byte(`{"cniVersion":"1.0.0","ips":[{"address":"nonsense"}]}`), nil), []int{6, 7}},
	} {
		if prev == nil && strings.HasPrefix(c.name, "prevResult") {
			continue
		}
		t.refused(c.name, call{verb: "ADD", file: t.file(t.last()), id: a.id, netns: a.ns.Path, stdin: c.stdin}, c.codes)
	}
	t.nothingLeft(mid, "a refused ADD")
}

func (t *T) interfaceExists() {
	before := t.warm()
	a, _ := t.base("1.0.0")
	if _, err := a.ns.sh("ip link add eth0 type veth peer name other"); err != nil {
		t.Fatalf("%v", err)
	}
	if _, err := t.verb(a, "ADD", t.conf(0, "1.0.0", nil, nil)); err == nil {
		t.Failf("ADD succeeds")
	}
	t.nothingLeft(before, "the failed ADD (before any DEL)")
}

func (t *T) noIPAM() {
	before := t.warm()
	a, _ := t.base("1.0.0")
	if t.Name() == "berth" {
		if _, err := t.verb(a, "ADD", t.conf(0, "1.0.0", nil, Conf{"ipam": Conf{"type": "no-such-ipam"}})); code(err) != 2 {
			t.Failf("%v, want code 2", err)
		}
		return
	}
	for _, typ := range []string{"no-such-ipam", "../../bin/true"} {
		if _, err := t.verb(a, "ADD", t.conf(0, "1.0.0", nil, Conf{"ipam": Conf{"type": typ}})); err == nil {
			t.Failf("ADD succeeds with %s", typ)
		}
	}
	t.nothingLeft(before, "the failed ADD (before any DEL)")
}
