package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/berth-project/berth/deviceplugin/internal/discovery/fake"
	"github.com/berth-project/berth/deviceplugin/internal/node"
)

// TestLabelBeforeFile: a label that names an override which the file does not have yet changes nothing, and is taken
// by the reload that brings it; what is written down for the next start is what was taken.
func TestLabelBeforeFile(t *testing.T) {
	src, err := fake.Open("t4x4")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "gpu.toml")
	set := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const shared = "[[overrides.shared.resources]]\nname = \"x.org/shared\"\nsharing = { strategy = \"time-slicing\", replicas = 2 }\n"
	const plain = "[[overrides.plain.resources]]\nname = \"x.org/plain\"\n"
	log := slog.New(slog.DiscardHandler)
	var kept []string
	r := &reloader{
		o: options{config: file, override: "plain"}, level: new(slog.LevelVar), log: log, override: "plain",
		node: node.New(node.Config{Dir: dir, Log: log, Now: time.Now}, src),
		keep: func(label string) error {
			kept = append(kept, label)
			return nil
		},
	}
	holds := func(when, override, resource string, written ...string) {
		t.Helper()
		var name string
		if rules := r.node.Policy().Rules; len(rules) > 0 {
			name = rules[0].Name
		}
		if r.current() != override || name != resource || !slices.Equal(kept, written) {
			t.Errorf("%s: override %q, resource %q, kept %q", when, r.current(), name, kept)
		}
	}
	set(plain)
	r.choose("shared")
	holds("the file lacks it", "plain", "x.org/plain")
	set(plain + shared)
	r.again()
	holds("the file has it", "shared", "x.org/shared", "shared")
	set(plain)
	r.again()
	holds("the file lost it", "shared", "x.org/shared", "shared")
	r.choose("")
	holds("no label: the flag's", "plain", "x.org/plain", "shared", "")
	set("nonsense")
	r.choose("shared")
	holds("a bad file", "plain", "x.org/plain", "shared", "")
	set(shared + plain)
	r.again()
	holds("a good one", "shared", "x.org/shared", "shared", "", "shared")
}
