package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestTheUnitStartsWithoutAFabric: whatever the unit runs before the agent must pass on a node whose fabric is missing:
// a snapshot would serve it.
func TestTheUnitStartsWithoutAFabric(t *testing.T) {
	unit, err := os.ReadFile("../../../deploy/systemd/berth-netd.service")
	if err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(t.TempDir(), "netd.yaml")
	if err := os.WriteFile(conf, []byte("fabric: "+conf+".missing\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	serves := false
	for line := range strings.Lines(string(unit)) {
		key, command, _ := strings.Cut(strings.TrimSpace(line), "=")
		words := strings.Fields(command)
		switch {
		case key == "ExecStart":
			serves = len(words) == 2 && words[1] == "serve"
		case key == "ExecStartPre" && len(words) > 0 && filepath.Base(words[0]) == "berth-netd":
			if err := run(t.Context(), append([]string{"--config", conf}, words[1:]...), io.Discard); err != nil {
				t.Errorf("%s: %v", command, err)
			}
		}
	}
	if !serves {
		t.Error("the unit does not start the agent")
	}
}

// TestCheckFindsBGP: `config check` reads the fabric's bgp section and the configuration's topology.
func TestCheckFindsBGP(t *testing.T) {
	dir := t.TempDir()
	conf, fab := filepath.Join(dir, "netd.yaml"), filepath.Join(dir, "fabric.yaml")
	for _, c := range []struct{ conf, fab, want string }{
		{"fabric: " + fab, "{pools: [], nodes: [], bgp: {topology: mush}}", `bgp.topology: "mush"`},
		{"kubernetes: {enabled: true, topology: mush}", "", "kubernetes.topology"},
		{"fabric: " + fab, "{pools: [], nodes: [], bgp: {topology: mesh}}", ""},
	} {
		if err := errors.Join(os.WriteFile(conf, []byte(c.conf), 0o600), os.WriteFile(fab, []byte(c.fab), 0o600)); err != nil {
			t.Fatal(err)
		}
		err := run(t.Context(), []string{"--config", conf, "config", "check"}, io.Discard)
		if (err != nil) != (c.want != "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s, %s: %v, want %q", c.conf, c.fab, err, c.want)
		}
	}
}
