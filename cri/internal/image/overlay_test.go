package image_test

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth/cri/internal/image"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// check pulls an image of the layers and compares its overlay with the reference.
func check(t testing.TB, s *image.Service, h *hub, ref string, layers ...[]member) {
	t.Helper()
	var ls []v1.Layer
	for _, l := range layers {
		ls = append(ls, layerOf(t, tarOf(t, l...)))
	}
	img, err := s.Pull(context.Background(), h.push(t, ref, imageOf(t, ls...)), nil)
	if err != nil {
		t.Fatal(err)
	}
	rootfs, err := s.Use(t.Name(), img.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Release(t.Name())
	want := t.TempDir()
	reference(t, want, layers...)
	compare(t, mounted(t, rootfs), readTree(t, want))
}

func compare(t testing.TB, got, want tree) {
	t.Helper()
	for p, w := range want {
		if got[p] != w {
			t.Errorf("%s:\n got %s\nwant %s", p, got[p], w)
		}
	}
	for p, g := range got {
		if _, ok := want[p]; !ok {
			t.Errorf("%s: should not be there: %s", p, g)
		}
	}
}

func with(m member, change func(*tar.Header)) member {
	change(&m.Header)
	return m
}

func link(name, to string) member {
	return member{Header: tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: to}}
}

func symlink(name, to string) member {
	return member{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to, Mode: 0o777, ModTime: time.Unix(1_500_000_000, 0)}}
}

func wh(name string) member { return file(path.Join(path.Dir(name), ".wh."+path.Base(name)), "") }
func opq(name string) member {
	return file(path.Join(name, ".wh..wh..opq"), "")
}

func xattr(k, v string) func(*tar.Header) {
	return func(h *tar.Header) { h.Format, h.PAXRecords = tar.FormatPAX, map[string]string{"SCHILY.xattr." + k: v} }
}

// capNetBind is cap_net_bind_service=ep as the kernel stores it.
var capNetBind = string([]byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})

func TestOverlayMatchesSequentialExtraction(t *testing.T) {
	leaks(t)
	base := []member{
		with(dir("srv", 0o2770), func(h *tar.Header) { h.Gid = 33 }), file("srv/index", "hello"),
		dir("bin", 0o755), with(file("bin/su", "x"), func(h *tar.Header) { h.Mode = 0o4755 }),
		dir("d", 0o700), dir("d/e", 0o711), file("d/e/f", "deep"), file("d/g", "g"), symlink("s", "/srv/index"),
	}
	cases := map[string][][]member{
		"plain":                        {base},
		"no layers of content":         {{}, {}},
		"same layer twice":             {base, {wh("srv/index")}, base},
		"whiteout":                     {base, {wh("srv/index"), wh("d/e")}},
		"whiteout of nothing":          {base, {wh("nothing"), wh("d/none")}},
		"whiteout below opaque":        {base, {dir("d", 0o755), wh("d/g"), opq("d"), dir("d/e", 0o755), wh("d/e/f")}},
		"opaque, out of order":         {base, {dir("d", 0o750), file("d/new", "n"), opq("d")}},
		"opaque, implicit":             {base, {opq("d"), file("d/new", "n")}},
		"opaque root":                  {base, {opq("."), file("only", "n")}},
		"whiteout, then new directory": {base, {wh("d"), dir("d", 0o700), file("d/h", "h")}},
		"new directory, then whiteout": {base, {dir("d", 0o700), file("d/h", "h"), wh("d")}},
		"whiteout, then implicit":      {base, {wh("d"), file("d/x/h", "h")}},
		"whiteout, then file":          {base, {wh("srv/index"), file("srv/index", "new")}},
		"file for directory":           {base, {file("d", "now a file")}},
		"directory for file":           {base, {dir("s", 0o755), file("s/x", "x"), dir("d/g", 0o700)}},
		"implicit parents":             {base, {file("srv/more", "m"), file("d/e/more", "m"), file("new/way/down", "n")}},
		"implicit, thrice":             {base, {file("d/e/1", "1")}, {file("d/e/2", "2"), dir("d", 0o777)}, {file("d/e/3", "3")}},
		"cross link":                   {base, {link("srv/again", "srv/index")}},
		"cross link, new parent":       {base, {link("far/away/x", "d/e/f"), link("far/away/y", "far/away/x")}},
		"cross link, then replaced":    {base, {link("srv/again", "srv/index"), file("srv/index", "other")}},
		"cross link, itself replaced":  {base, {link("srv/again", "srv/index"), file("srv/again", "mine")}},
		"cross link to symlink":        {base, {link("t", "s")}},
		"cross link over whiteout":     {base, {link("keep", "d/g"), wh("bin/su")}},
		"link within":                  {{file("a", "a"), link("b", "a"), dir("c", 0o755), link("c/d", "b")}},
		"devices":                      {{with(file("null", ""), func(h *tar.Header) { h.Typeflag, h.Devmajor, h.Devminor = tar.TypeChar, 1, 3 }), with(file("pipe", ""), func(h *tar.Header) { h.Typeflag = tar.TypeFifo })}},
		"xattrs":                       {{with(file("ping", "x"), xattr("security.capability", capNetBind)), with(dir("u", 0o755), xattr("user.note", "n\x00n"))}, {file("u/implicit", "")}},
		"owners":                       {{with(file("o", "x"), func(h *tar.Header) { h.Uid, h.Gid, h.Mode = 1000, 4_000_000_000, 0o6755 })}},
		"times":                        {{with(file("far", ""), func(h *tar.Header) { h.ModTime = time.Unix(4_000_000_000, 999_999_999); h.Format = tar.FormatPAX })}},
		"twice in one layer":           {{file("a", "1"), file("a", "2"), dir("b", 0o700), dir("b", 0o711), symlink("c", "a"), file("c", "3"), file("d", "x"), dir("d", 0o755)}},
	}
	h := newHub(t)
	s := open(t, t.TempDir())
	i := 0
	for name, layers := range cases {
		i++
		t.Run(name, func(t *testing.T) { check(t, s, h, fmt.Sprintf("case/%d:1", i), layers...) })
	}
}

// TestOverlayMatchesRandom compares random stacks of random layers.
func TestOverlayMatchesRandom(t *testing.T) {
	h := newHub(t)
	s := open(t, t.TempDir())
	for seed := range uint64(60) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			g := &generator{rng: rand.New(rand.NewPCG(seed, 1)), root: t.TempDir()}
			var layers [][]member
			for range 4 {
				l := g.layer(t)
				layers = append(layers, l)
				reference(t, g.root, l)
			}
			check(t, s, h, fmt.Sprintf("random/%d:1", seed), layers...)
		})
	}
}

// generator makes layers that fit what is in root, which has all layers before. It leaves alone what peers treat
// differently: paths through lower symbolic links and files.
type generator struct {
	rng  *rand.Rand
	root string
}

func (g *generator) name() string {
	parts := []string{}
	for range 1 + g.rng.IntN(3) {
		parts = append(parts, string(rune('a'+g.rng.IntN(4))))
	}
	return strings.Join(parts, "/")
}

func (g *generator) layer(t *testing.T) []member {
	var out []member
	used := map[string]byte{}   // what this layer has made
	hidden := map[string]bool{} // whiteouts of this layer
	for i := range 12 {
		p := g.name()
		if !g.parentsAreDirs(p, used) || used[p] != 0 {
			continue
		}
		m := file(p, fmt.Sprint(p, i, g.rng.IntN(100)))
		switch g.rng.IntN(8) {
		case 0, 1:
			m = with(dir(p, int64(0o700+g.rng.IntN(64))), func(h *tar.Header) { h.Uid = g.rng.IntN(3) })
		case 2:
			m = symlink(p, "/"+g.name())
		case 3:
			if _, err := os.Lstat(filepath.Join(g.root, p)); err != nil || hasBelow(used, p) {
				continue
			}
			m, hidden[p] = wh(p), true
		case 4:
			target := g.name()
			fi, err := os.Lstat(filepath.Join(g.root, target))
			if err != nil || !fi.Mode().IsRegular() || g.touched(target, used, hidden) || hasBelow(used, p) || strings.HasPrefix(target, p+"/") || target == p {
				continue
			}
			m = link(p, target)
			used[target] = 'l'
		}
		if hasBelow(used, p) && m.Typeflag != tar.TypeDir {
			continue
		}
		used[p] = m.Typeflag
		out = append(out, m)
	}
	return out
}

func (g *generator) touched(p string, used map[string]byte, hidden map[string]bool) bool {
	for q := p; q != "."; q = path.Dir(q) {
		if used[q] != 0 && used[q] != tar.TypeDir || hidden[q] {
			return true
		}
	}
	return false
}

func (g *generator) parentsAreDirs(p string, used map[string]byte) bool {
	for q := path.Dir(p); q != "."; q = path.Dir(q) {
		if used[q] != 0 && used[q] != tar.TypeDir {
			return false
		}
		if fi, err := os.Lstat(filepath.Join(g.root, q)); used[q] == 0 && err == nil && !fi.IsDir() {
			return false
		}
	}
	return true
}

func hasBelow(used map[string]byte, p string) bool {
	for q := range used {
		if strings.HasPrefix(q, p+"/") {
			return true
		}
	}
	return false
}

// TestExportImport checks that an export holds the same files, and that importing it elsewhere gives an image.
func TestExportImport(t *testing.T) {
	leaks(t)
	h := newHub(t)
	s, other := open(t, t.TempDir()), open(t, t.TempDir())
	layers := [][]member{
		{dir("d", 0o700), file("d/a", "a"), link("d/b", "d/a"), symlink("l", "d"), with(file("c", "x"), xattr("user.k", "v"))},
		{file("d/n", "n"), wh("l"), opq("e"), link("m", "c")},
	}
	img, err := s.Pull(context.Background(), h.push(t, "library/x:1", imageOf(t, layerOf(t, tarOf(t, layers[0]...)), layerOf(t, tarOf(t, layers[1]...)))), nil)
	if err != nil {
		t.Fatal(err)
	}
	var first, second bytes.Buffer
	for _, b := range []*bytes.Buffer{&first, &second} {
		if err := s.Export(context.Background(), b, []string{img.Tags[0]}); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Error("two exports differ")
	}
	imgs, err := other.Import(context.Background(), io.NopCloser(&first))
	if err != nil || len(imgs) != 1 || !slices.Equal(imgs[0].Tags, img.Tags) {
		t.Fatalf("import: %v, %v", imgs, err)
	}
	rootfs, err := other.Use("t", imgs[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Release("t")
	want := t.TempDir()
	reference(t, want, layers...)
	compare(t, mounted(t, rootfs), readTree(t, want))
}
