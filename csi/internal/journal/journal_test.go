package journal_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/berth-project/berth/csi/internal/journal"
	"github.com/berth-project/berth/proto/errs"
)

func open(t *testing.T, dir string) (*journal.Journal, []string) {
	t.Helper()
	j, damaged, err := journal.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return j, damaged
}

func content(t *testing.T, j *journal.Journal) map[string]string {
	t.Helper()
	all := map[string]string{}
	if err := j.Each("", func(k string, v []byte) error { all[k] = string(v); return nil }); err != nil {
		t.Fatal(err)
	}
	return all
}

// TestSurvives: what was put is there after a reopening, what was deleted is not; nothing is closed properly.
func TestSurvives(t *testing.T) {
	dir := t.TempDir()
	j, _ := open(t, dir)
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			if err := j.Put(fmt.Sprintf("a/%d", i), i, i%2 == 0); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for i := range 25 {
		if err := j.Delete(fmt.Sprintf("a/%d", i), i%2 == 0); err != nil {
			t.Error(err)
		}
	}
	copied := filepath.Join(t.TempDir(), "j")
	if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	again, damaged := open(t, copied)
	if all := content(t, again); len(all) != 25 || all["a/30"] != "30" || len(damaged) > 0 {
		t.Errorf("%d records, damaged %v: %v", len(all), damaged, all)
	}
}

// TestEveryByte: whatever single byte is damaged or wherever the file is cut, at most one record's last change is
// lost, the journal opens, and a loss in the middle is reported.
func TestEveryByte(t *testing.T) {
	dir := t.TempDir()
	j, _ := open(t, dir)
	for i := range 6 {
		if err := j.Put(fmt.Sprint(i), "value", true); err != nil {
			t.Fatal(err)
		}
	}
	good, err := os.ReadFile(filepath.Join(dir, "journal"))
	if err != nil {
		t.Fatal(err)
	}
	for at := range good {
		for _, cut := range []bool{false, true} {
			bad := bytes.Clone(good)
			bad[at] ^= 0x10
			if cut {
				bad = bad[:at]
			}
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "journal"), bad, 0o600); err != nil {
				t.Fatal(err)
			}
			j, damaged := open(t, dir)
			all := content(t, j)
			have := len(all)
			for k, v := range all {
				if v != `"value"` {
					t.Errorf("byte %d, cut %v: %s is %s", at, cut, k, v)
				}
			}
			whole := bytes.Count(bad, []byte("\n")) - 1
			if cut && have < whole || !cut && have < 4 {
				t.Errorf("byte %d, cut %v: %d records are left", at, cut, have)
			}
			if !cut && have < 5 && len(damaged) == 0 {
				t.Errorf("byte %d: a loss is not reported", at)
			}
			if len(damaged) > 0 {
				if _, err := os.Stat(filepath.Join(dir, "damaged", "journal.0")); err != nil {
					t.Error(err)
				}
			}
			if err := j.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestSecondProcessIsRefused(t *testing.T) {
	dir := t.TempDir()
	open(t, dir)
	if _, _, err := journal.Open(dir); !errors.Is(err, errs.FailedPrecondition) {
		t.Errorf("a second opening: %v", err)
	}
}

// TestShrinks: a record that changes for ever does not fill the disk.
func TestShrinks(t *testing.T) {
	dir := t.TempDir()
	j, _ := open(t, dir)
	long := string(bytes.Repeat([]byte("x"), 64<<10))
	for i := range 400 {
		if err := j.Put("one", long, i%20 == 0); err != nil {
			t.Fatal(err)
		}
	}
	fi, err := os.Stat(filepath.Join(dir, "journal"))
	if err != nil || fi.Size() > 8<<20 {
		t.Errorf("%d bytes after 25 MiB of changes, %v", fi.Size(), err)
	}
}
