package store_test

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-project/berth/cri/internal/store"
)

func open(t *testing.T, dir string) *store.Store {
	t.Helper()
	s, err := store.Open(dir, slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestRecordsSurviveAndDamageIsAlone(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	for _, id := range []string{"a", "b", "c"} {
		if err := s.Put("pod", id, []byte("record "+id)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Delete("pod", "c"); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete("pod", "c"); err != nil {
		t.Errorf("second delete: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	bad := filepath.Join(dir, "pod", "b")
	raw, err := os.ReadFile(bad)
	if err != nil {
		t.Fatal(err)
	}
	raw[len(raw)-1] ^= 1
	if err := os.WriteFile(bad, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "pod", ".tmp-1"), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir)
	defer s.Close() //nolint:errcheck // test
	all, err := s.Load("pod")
	if err != nil || len(all) != 1 || string(all["a"]) != "record a" {
		t.Errorf("loaded %q, %v", all, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "quarantine/pod/b.0")); err != nil {
		t.Errorf("not quarantined: %v", err)
	}
}

// TestMain is also the second daemon: it opens the store and prints what it is told.
func TestMain(m *testing.M) {
	dir := os.Getenv("STORE_SECOND")
	if dir == "" {
		os.Exit(m.Run())
	}
	_, err := store.Open(dir, slog.Default())
	fmt.Print(err)
}

func TestSecondOpenIsRefused(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	defer s.Close() //nolint:errcheck // test
	second := exec.Command("/proc/self/exe")
	second.Env = append(os.Environ(), "STORE_SECOND="+dir)
	said, err := second.CombinedOutput()
	want := fmt.Sprintf("another berth-cri uses %s: stop it first, or configure another root: process %d has", dir, os.Getpid())
	if err != nil || !strings.HasPrefix(string(said), want) {
		t.Errorf("a second daemon on one store: %q, %v; want %q", said, err, want)
	}
}
