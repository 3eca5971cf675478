package main

import (
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
