package audit_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-project/berth/cri/internal/audit"
)

// TestApply: what is damaged is kept elsewhere, leftovers go, what is left to the daemon stays; each may be gone already.
func TestApply(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"damaged", "leftover", "other"} {
		if err := os.WriteFile(at(name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	all := []audit.Finding{
		{Object: "record", What: "is damaged", Harm: true, Action: audit.Quarantine, Path: at("damaged"), Into: at("quarantine")},
		{Object: "write", What: "was interrupted", Action: audit.Remove, Path: at("leftover")},
		{Object: "stranger", What: "has no record", Path: at("other")},
	}
	for range 2 {
		for _, f := range all {
			if err := f.Apply(); err != nil {
				t.Error(err)
			}
		}
	}
	if b, err := os.ReadFile(at("quarantine/damaged.0")); err != nil || string(b) != "damaged" {
		t.Errorf("the evidence is %q, %v", b, err)
	}
	if _, err := os.Stat(at("leftover")); err == nil {
		t.Error("the leftover is there")
	}
	if _, err := os.Stat(at("other")); err != nil {
		t.Error(err)
	}
	if n := audit.Harm(all); n != 1 {
		t.Errorf("%d do harm, want 1", n)
	}
}

// TestWrite: harm comes first, and the table says what would be done.
func TestWrite(t *testing.T) {
	var b strings.Builder
	err := audit.Write(&b, []audit.Finding{
		{Object: "note", What: "takes space", Action: audit.Remove, Path: "/x"},
		{Object: "harm", What: "is lost", Harm: true, Action: audit.Quarantine, Path: "/y", Into: "/q"},
	})
	lines := strings.Split(strings.TrimSpace(b.String()), "\n")
	if err != nil || len(lines) != 3 {
		t.Fatalf("%v\n%s", err, b.String())
	}
	for i, want := range []string{"OBJECT WHAT REPAIR", "HARM harm is lost move to /q", "note note takes space remove /x"} {
		if got := strings.Join(strings.Fields(lines[i]), " "); got != want {
			t.Errorf("line %d is %q, want %q", i, got, want)
		}
	}
}
