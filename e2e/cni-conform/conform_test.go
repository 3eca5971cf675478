package conform

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestMain runs the tests in namespaces of their own.
func TestMain(m *testing.M) { os.Exit(Isolate(m.Run)) }

// plugins builds berth-cni under every name.
func plugins(t *testing.T) Set {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command("go", "build", "-o", filepath.Join(dir, "berth"), "./cni/cmd/berth-cni")
	cmd.Dir, cmd.Env = "../..", append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, s := range Subjects() {
		for _, c := range s.Chain {
			if err := os.Link(filepath.Join(dir, "berth"), filepath.Join(dir, s.file(c))); err != nil && !os.IsExist(err) {
				t.Fatal(err)
			}
		}
	}
	return Set{Name: "berth", Dir: dir}
}

// TestConform runs every case but the kills, which take minutes and are conformance-cni's.
func TestConform(t *testing.T) {
	set := plugins(t)
	for _, c := range Cases() {
		if strings.HasPrefix(c.Name, "SIGKILL") {
			continue
		}
		t.Run(c.Subject.Name+" "+c.Name, func(t *testing.T) {
			for _, f := range c.run(set).Fails {
				t.Error(f)
			}
		})
	}
}

// TestBites is for the suite itself: a plugin that does nothing must not pass.
func TestBites(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink("/bin/true", filepath.Join(dir, "berth")); err != nil {
		t.Fatal(err)
	}
	passed := map[string]bool{}
	for _, c := range Cases() {
		if c.Subject.Name == "berth" && c.run(Set{Name: "true", Dir: dir}).Passed() {
			passed[c.Name] = true
		}
	}
	// It says nothing when nothing is asked, and nothing is left of nothing.
	for name := range passed {
		if !strings.HasPrefix(name, "no CNI_COMMAND") && !strings.HasPrefix(name, "DEL") && !strings.HasPrefix(name, "GC") &&
			!strings.HasPrefix(name, "SIGKILL") && name != "STATUS in version 1.1.0" {
			t.Errorf("/bin/true passes %q", name)
		}
	}
}
