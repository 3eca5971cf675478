package image_test

import (
	"os"
	"testing"
)

// there says whether a layer's directory is there.
func there(t *testing.T, what, dir string, want bool) {
	t.Helper()
	if _, err := os.Stat(dir); (err == nil) != want {
		t.Errorf("%s: %s: %v, want it there: %v", what, dir, err, want)
	}
}

// TestTwoHolders: a removed image stays until the last container that uses it has ended.
func TestTwoHolders(t *testing.T) {
	h := newHub(t)
	s := open(t, t.TempDir())
	img, err := s.Pull(t.Context(), h.push(t, "two:1", imageOf(t, numbered(t, 1))), nil)
	must(t, err)
	fs, err := s.Use("first", img.ID)
	must(t, err)
	_, err = s.Use("second", img.ID)
	must(t, err)
	must(t, s.Remove(t.Context(), img.ID))
	s.Release("first")
	there(t, "one of two ended", fs.Lower[0], true)
	s.Release("second")
	there(t, "both ended", fs.Lower[0], false)
}

// TestSharedLayer: what two images share goes with the second.
func TestSharedLayer(t *testing.T) {
	h := newHub(t)
	s := open(t, t.TempDir())
	shared := numbered(t, 1)
	a, err := s.Pull(t.Context(), h.push(t, "a:1", imageOf(t, shared, numbered(t, 2))), nil)
	must(t, err)
	b, err := s.Pull(t.Context(), h.push(t, "b:1", imageOf(t, shared, numbered(t, 3))), nil)
	must(t, err)
	fs, err := s.Use("container", b.ID)
	must(t, err)
	bottom := fs.Lower[len(fs.Lower)-1]
	must(t, s.Remove(t.Context(), a.ID))
	there(t, "the other image has it", bottom, true)
	s.Release("container")
	must(t, s.Remove(t.Context(), b.ID))
	there(t, "nobody has it", bottom, false)
}

// TestBeforeRetain: until the daemon knows its containers, an image is hidden by its removal and nothing of it deleted.
func TestBeforeRetain(t *testing.T) {
	h := newHub(t)
	root := t.TempDir()
	s := open(t, root)
	img, err := s.Pull(t.Context(), h.push(t, "early:1", imageOf(t, numbered(t, 1))), nil)
	must(t, err)
	fs, err := s.Use("old", img.ID)
	must(t, err)

	s = open(t, root) // another process, which has not looked at its containers
	_, err = s.Use("new", img.ID)
	must(t, err)
	must(t, s.Remove(t.Context(), img.ID))
	s.Release("new")
	there(t, "before it is known who uses it", fs.Lower[0], true)
	s.Retain(map[string]string{"old": img.ID})
	there(t, "a container uses it", fs.Lower[0], true)
	s.Release("old")
	there(t, "released", fs.Lower[0], false)

	_, err = s.Pull(t.Context(), h.push(t, "early:2", imageOf(t, numbered(t, 1))), nil)
	must(t, err)
	s = open(t, root)
	must(t, s.Remove(t.Context(), img.ID)) // by nobody used, as far as is known
	there(t, "removed before it is known who uses it", fs.Lower[0], true)
	s.Retain(nil)
	there(t, "nobody uses it", fs.Lower[0], false)
}
