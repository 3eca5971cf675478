package unpacker_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// jail is a layer's directory with canaries around it: what an escape would change.
type jail struct {
	outer, layer string
	before       map[string]string
}

func newJail(t testing.TB) *jail {
	t.Helper()
	j := &jail{outer: temporary(t)}
	j.layer = filepath.Join(j.outer, "store", "tmp", "1", "fs")
	at := func(p string) string { return filepath.Join(j.outer, p) }
	for _, err := range []error{
		os.MkdirAll(j.layer, 0o755), os.MkdirAll(at("etc/ssh"), 0o755), os.MkdirAll(at("store/layers/other/fs"), 0o755),
		os.WriteFile(at("etc/passwd"), []byte("host"), 0o644), os.WriteFile(at("store/tmp/1/layer"), []byte("record"), 0o600),
		os.WriteFile(at("store/layers/other/fs/a"), []byte("another layer"), 0o644), os.Symlink("etc/passwd", at("link")),
		unix.Setxattr(at("etc/passwd"), "user.canary", []byte("v"), 0),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	j.before = j.manifest(t)
	return j
}

// temporary is a directory without the characters in its name that mount options give a meaning, as t.TempDir has.
func temporary(t testing.TB) string {
	t.Helper()
	d, err := os.MkdirTemp("", "berth-unpacker-*")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(d); err != nil {
			t.Error(err)
		}
	})
	return d
}

// manifest describes everything around the layer, and what an escape on this host would aim at: content, mode, owner,
// times, attributes.
func (j *jail) manifest(t testing.TB) map[string]string {
	t.Helper()
	out := map[string]string{}
	note := func(p string) {
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			t.Fatal(err)
		}
		d := fmt.Sprintf("%o %d:%d links=%d mtime=%v ctime=%v", st.Mode, st.Uid, st.Gid, st.Nlink, st.Mtim, st.Ctim)
		if st.Mode&unix.S_IFMT == unix.S_IFREG {
			b, _ := os.ReadFile(p)
			d += fmt.Sprintf(" %x", sha256.Sum256(b))
		}
		buf := make([]byte, 4096)
		n, _ := unix.Llistxattr(p, buf)
		out[p] = d + fmt.Sprintf(" %q", buf[:max(n, 0)])
	}
	err := filepath.WalkDir(j.outer, func(p string, _ fs.DirEntry, err error) error {
		if err != nil || p == j.layer {
			return errors.Join(err, fs.SkipDir)
		}
		note(p)
		return nil
	})
	if err != nil && !errors.Is(err, fs.SkipDir) {
		t.Fatal(err)
	}
	for _, p := range []string{"/", "/etc", "/etc/passwd", "/etc/hostname", "/usr", "/usr/bin"} {
		if _, err := os.Lstat(p); err == nil {
			note(p)
		}
	}
	return out
}

// unharmed checks that nothing outside the layer has changed.
func (j *jail) unharmed(t testing.TB) {
	t.Helper()
	after := j.manifest(t)
	for p, was := range j.before {
		if after[p] != was {
			t.Errorf("outside the layer, %s: was %q, is %q", p, was, after[p])
		}
	}
	for p := range after {
		if _, ok := j.before[p]; !ok {
			t.Errorf("outside the layer: %s appeared", p)
		}
	}
}
