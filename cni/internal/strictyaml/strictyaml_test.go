package strictyaml_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/berth-project/berth/cni/internal/strictyaml"
)

type inner struct {
	Addr  netip.Addr `yaml:"addr"`
	Names []string   `yaml:"names"`
}

type outer struct {
	List  []inner          `yaml:"list"`
	ByKey map[string]inner `yaml:"byKey"`
	N     int              `yaml:"n"`
}

func TestDecode(t *testing.T) {
	var o outer
	err := strictyaml.Decode([]byte("list:\n- addr: 192.0.2.1\n  names: [a, b]\nbyKey: {x: {addr: 'fd00::1'}}\nn: 7\n"), &o)
	if err != nil || o.N != 7 || o.List[0].Addr != netip.MustParseAddr("192.0.2.1") || o.ByKey["x"].Addr.Is4() {
		t.Fatalf("%+v, %v", o, err)
	}
	for _, empty := range []string{"", "# nothing\n", "null\n"} {
		if err := strictyaml.Decode([]byte(empty), &o); err != nil {
			t.Errorf("%q: %v", empty, err)
		}
	}
}

func TestBadDocumentsAreNamed(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"lst: []", `line 1: lst: unknown key, nearest is "list"`},
		{"list:\n- adr: 192.0.2.1", `line 2: list[0].adr: unknown key, nearest is "addr"`},
		{"byKey: {x: {name: y}}", `byKey.x.name: unknown key, nearest is "names"`},
		{"list: {}", "holds a mapping, want a slice"},
		{"n: many", "cannot unmarshal"},
		{"n: 1\nn: 2", "already defined"},
		{"list: [{addr: 192.0.2}]", "192.0.2"},
		{"list: &a []\n", "anchors and aliases"},
		{"n: 1\n---\nn: 2\n", "more than one document"},
		{"[", "no YAML"},
		{strings.Repeat(" ", strictyaml.MaxSize+1), "at most"},
	} {
		var o outer
		err := strictyaml.Decode([]byte(c.text), &o)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.40q: got %v, want %q", c.text, err, c.want)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add("list:\n- addr: 192.0.2.1\n  names: [a, b]\nbyKey: {x: {addr: 'fd00::1'}}\nn: 7\n")
	f.Add("list: &a [*a]")
	f.Fuzz(func(_ *testing.T, text string) {
		var o outer
		_ = strictyaml.Decode([]byte(text), &o) // must return
	})
}
