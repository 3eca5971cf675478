package unpacker_test

import (
	"fmt"
	"strings"
	"testing"
)

// escapes are names that aim outside, as clean code and careless code read them.
func escapes() map[string]string {
	return map[string]string{
		"dot dot":                "../../etc/passwd",
		"dot dot in the midst":   "a/../../etc/passwd",
		"dot dot at the end":     "a/b/../..",
		"many dot dots":          strings.Repeat("../", 60) + "etc/passwd",
		"absolute":               "/etc/passwd",
		"absolute twice":         "//etc//passwd",
		"dots and slashes":       "./.././//..//./etc/passwd",
		"dot":                    "./.",
		"backslashes":            `..\..\etc\passwd`,
		"drive":                  `C:\Windows\x`,
		"three dots":             ".../x",
		"proc":                   "/proc/self/root/etc/passwd",
		"newline":                "a\nb",
		"escape sequence":        "\x1b[2J\x07x",
		"leading dash":           "-rf",
		"spaces":                 " / /x ",
		"unicode dots":           "․․/․․/etc/passwd",
		"right-to-left":          "a\u202egpj.exe",
		"255 bytes":              strings.Repeat("n", 255),
		"256 bytes":              strings.Repeat("n", 256),
		"3,900 bytes":            strings.Repeat(strings.Repeat("d", 99)+"/", 38) + strings.Repeat("f", 100),
		"4096 bytes":             strings.Repeat(strings.Repeat("d", 99)+"/", 40) + strings.Repeat("f", 96),
		"one component of 4 KiB": strings.Repeat("x", 4000),
		"1024 deep":              strings.Repeat("d/", 1023) + "f",
		"1500 deep":              strings.Repeat("d/", 1500) + "f",
		"60,000 slashes":         strings.Repeat("/", 3000) + "x",
	}
}

// pathCases are names of files, of directories, and of every other type.
func pathCases(t *testing.T) map[string]sample {
	out := map[string]sample{}
	for name, p := range escapes() {
		out["path of a file: "+name] = archive(t, m{typ: reg, name: p, body: "x"})
	}
	for _, name := range []string{"dot dot", "absolute", "dot", "256 bytes", "1500 deep", "proc"} {
		out["path of a directory: "+name] = archive(t, m{typ: dirT, name: escapes()[name] + "/", mode: 0o700})
		out["path of a symbolic link: "+name] = archive(t, m{typ: sym, name: escapes()[name], link: "/etc"})
		out["path of a device: "+name] = archive(t, m{typ: '3', name: escapes()[name], major: 1, minor: 3})
	}
	more := map[string]sample{
		"path: empty":                       {packed: raw("", reg, 1, "x", nil)},
		"path: not UTF-8":                   {packed: raw("a\xff\xfe/\x80", reg, 1, "x", nil)},
		"path: NUL by PAX":                  {packed: concat(paxHeader("path", "a\x00b"), raw("x", reg, 1, "x", nil))},
		"path: PAX over ustar":              {packed: concat(paxHeader("path", "../../etc/passwd"), raw("innocent", reg, 1, "x", nil))},
		"path: PAX empty":                   {packed: concat(paxHeader("path", ""), raw("named", reg, 1, "x", nil))},
		"path: GNU long name":               {packed: concat(gnuLong('L', "../../../etc/passwd\x00"), raw("innocent", reg, 1, "x", nil))},
		"path: GNU long name of 1 MiB":      {packed: concat(gnuLong('L', strings.Repeat("n/", 1<<19)+"\x00"), raw("innocent", reg, 1, "x", nil))},
		"path: GNU long name, then PAX":     {packed: concat(gnuLong('L', "gnu\x00"), paxHeader("path", "../pax"), raw("innocent", reg, 1, "x", nil))},
		"path: GNU long name twice":         {packed: concat(gnuLong('L', "one\x00"), gnuLong('L', "../two\x00"), raw("innocent", reg, 1, "x", nil))},
		"path: GNU long name of nothing":    {packed: concat(gnuLong('L', "../one\x00"))},
		"path: ustar prefix":                {packed: raw("passwd", reg, 1, "x", func(h []byte) { copy(h[345:], "../../etc") })},
		"path: ustar prefix absolute":       {packed: raw("/passwd", reg, 1, "x", func(h []byte) { copy(h[345:], "/etc/") })},
		"path: global header names it":      {packed: concat(global("path", "../../etc/passwd"), raw("innocent", reg, 1, "x", nil))},
		"path: trailing slash on a file":    {packed: raw("a/", reg, 1, "x", nil)},
		"path: V7 file with a slash":        {packed: raw("a/", 0, 0, "", func(h []byte) { copy(h[257:], make([]byte, 8)) })},
		"path: directory with a body":       {packed: raw("d/", dirT, 5, "12345", nil)},
		"path: parent is a file":            archive(t, m{typ: reg, name: "f", body: "x"}, m{typ: reg, name: "f/g", body: "x"}),
		"path: parent is a fifo":            archive(t, m{typ: '6', name: "f"}, m{typ: reg, name: "f/g", body: "x"}),
		"path: parent is a device":          archive(t, m{typ: '4', name: "f", major: 8}, m{typ: reg, name: "f/g", body: "x"}),
		"path: the root as a file":          {packed: raw("/", reg, 1, "x", nil)},
		"path: the root as a link":          archive(t, m{typ: sym, name: "/", link: "/etc"}, m{typ: reg, name: "a", body: "x"}),
		"path: the root's mode and owner":   archive(t, m{typ: dirT, name: "./", mode: 0o4777, uid: 5}, m{typ: reg, name: "a", body: "x"}),
		"path: same name 1,000 times":       archive(t, repeat(1000, m{typ: reg, name: "f", body: "body"})...),
		"path: same file, every type":       archive(t, everyType("x")...),
		"path: same directory, every type":  archive(t, append([]m{{typ: dirT, name: "x/y/z"}}, everyType("x")...)...),
		"path: directory after 1,000 files": archive(t, append(numbered(1000, "d/%d"), m{typ: reg, name: "d", body: "x"})...),
		"path: file becomes a directory":    archive(t, m{typ: reg, name: "d", body: "x"}, m{typ: dirT, name: "d"}, m{typ: reg, name: "d/f", body: "y"}),
		"path: parents only":                archive(t, m{typ: reg, name: "a/b/c/d", body: "x"}),
	}
	for k, v := range more {
		out[k] = v
	}
	return out
}

func repeat(n int, e m) (out []m) {
	for range n {
		out = append(out, e)
	}
	return out
}

func numbered(n int, format string) (out []m) {
	for i := range n {
		out = append(out, m{typ: reg, name: fmt.Sprintf(format, i)})
	}
	return out
}

// everyType makes one name each type in turn; a file is last.
func everyType(name string) []m {
	return []m{
		{typ: reg, name: name, body: "1"},
		{typ: dirT, name: name},
		{typ: sym, name: name, link: "/etc/passwd"},
		{typ: '3', name: name, major: 1, minor: 3},
		{typ: '4', name: name, major: 7},
		{typ: '6', name: name},
		{typ: '3', name: name},
		{typ: hard, name: name, link: "nowhere"},
		{typ: reg, name: name, body: "last"},
	}
}

// linkCases are symbolic and hard links, what is written through them, and swaps of what was there.
func linkCases(t *testing.T) map[string]sample {
	w := func(name string) m { return m{typ: reg, name: name, body: "x"} }
	s := func(name, to string) m { return m{typ: sym, name: name, link: to} }
	h := func(name, to string) m { return m{typ: hard, name: name, link: to} }
	d := func(name string) m { return m{typ: dirT, name: name} }
	chain := []m{}
	for i := range 300 {
		chain = append(chain, s(fmt.Sprintf("l%d", i), fmt.Sprintf("l%d", i+1)))
	}
	return map[string]sample{
		"link: up and out, write":                archive(t, s("l", "../../../../etc"), w("l/passwd")),
		"link: absolute, write":                  archive(t, s("l", "/etc"), w("l/passwd")),
		"link: to the host's root by proc":       archive(t, s("p", "/proc/1/root"), w("p/etc/passwd")),
		"link: to a descriptor":                  archive(t, s("p", "/proc/self/fd/3/../.."), w("p/x")),
		"link: to itself":                        archive(t, s("l", "l"), w("l/f")),
		"link: loop of two":                      archive(t, s("a", "b"), s("b", "a"), w("a/f")),
		"link: loop through a directory":         archive(t, d("d"), s("d/l", "../d/l/x"), w("d/l/f")),
		"link: chain of 300":                     archive(t, append(chain, w("l0/f"))...),
		"link: chain of 40":                      archive(t, append(chain[260:300:300], d("l300"), w("l260/f"))...),
		"link: grows":                            archive(t, s("a", "a/a"), w("a/f")),
		"link: exponential":                      archive(t, s("a", "b/b"), s("b", "c/c"), s("c", "d/d"), s("d", "e/e"), s("e", "e/e"), w("a/f")),
		"link: to dot":                           archive(t, s("l", "."), w("l/l/l/l/f")),
		"link: to dot dot":                       archive(t, s("l", ".."), w("l/l/l/f")),
		"link: relative from below":              archive(t, d("a/b/c"), s("a/b/c/l", "../../../../../../etc"), w("a/b/c/l/passwd")),
		"link: dangling parent":                  archive(t, s("l", "/none/at/all"), w("l/f")),
		"link: file over a link":                 archive(t, s("l", "/etc/passwd"), w("l")),
		"link: directory over a link":            archive(t, s("l", "/etc"), d("l"), w("l/passwd")),
		"link: link over a directory, write":     archive(t, d("d"), w("d/a"), s("d", "../../../../etc"), w("d/b")),
		"link: cached parent swapped":            archive(t, d("d/e"), w("d/e/a"), s("d", "/"), w("d/e/b")),
		"link: grandparent swapped":              archive(t, w("a/b/c/1"), s("a", "/etc"), w("a/b/c/2"), w("a/b/c/3")),
		"link: target replaced twice":            archive(t, s("l", "x"), w("l/1"), s("l", "/y"), w("l/2"), s("l", "../z"), w("l/3")),
		"link: empty target":                     {packed: raw("l", sym, 0, "", nil)},
		"link: target of 4,095 bytes":            archive(t, s("l", strings.Repeat("x", 4095))),
		"link: target of 5,000 bytes":            archive(t, s("l", strings.Repeat("x", 5000))),
		"link: target with NUL":                  {packed: concat(paxHeader("linkpath", "a\x00b"), raw("l", sym, 0, "", nil))},
		"link: target with newline":              archive(t, s("l", "a\nroot::0:0\n")),
		"link: PAX target":                       {packed: concat(paxHeader("linkpath", "/etc"), raw("l", sym, 0, "", nil), raw("l/passwd", reg, 1, "x", nil))},
		"link: GNU long target":                  {packed: concat(gnuLong('K', strings.Repeat("../", 100)+"etc\x00"), raw("l", sym, 0, "", nil), raw("l/passwd", reg, 1, "x", nil))},
		"link: with a body":                      {packed: raw("l", sym, 5, "12345", func(h []byte) { copy(h[157:], "/etc") })},
		"link: mode 7777":                        archive(t, m{typ: sym, name: "l", link: "/etc/passwd", mode: 0o7777}),
		"hard link: out":                         archive(t, h("h", "../../../../etc/passwd")),
		"hard link: absolute":                    archive(t, h("h", "/etc/passwd"), m{typ: reg, name: "h2", body: "x"}),
		"hard link: into another layer":          archive(t, h("h", "../../../layers/other/fs/a")),
		"hard link: to the record beside":        archive(t, h("h", "../layer")),
		"hard link: through a link":              archive(t, s("l", "../../../../etc"), h("h", "l/passwd"), w("h")),
		"hard link: to a link, write":            archive(t, s("l", "/etc/passwd"), h("h", "l"), w("h")),
		"hard link: to a link, chmod":            archive(t, s("l", "/etc/passwd"), h("h", "l"), m{typ: hard, name: "h", link: "l", mode: 0o4777, uid: 7}),
		"hard link: to a directory":              archive(t, d("d"), h("h", "d")),
		"hard link: to a directory by a link":    archive(t, d("d"), s("l", "d"), h("h", "l")),
		"hard link: to the root":                 archive(t, h("h", "/")),
		"hard link: to dot dot":                  archive(t, h("h", "..")),
		"hard link: to itself":                   archive(t, h("h", "h")),
		"hard link: to itself, real":             archive(t, w("h"), h("h", "./h")),
		"hard link: to a whiteout":               archive(t, w(".wh.a"), h("h", "a")),
		"hard link: to what comes later":         archive(t, h("h", "later"), w("later")),
		"hard link: loop":                        archive(t, h("a", "b"), h("b", "a")),
		"hard link: loop of three":               archive(t, h("a", "b"), h("b", "c"), h("c", "a")),
		"hard link: then the target is replaced": archive(t, w("a"), h("h", "a"), m{typ: reg, name: "a", body: "new"}),
		"hard link: then a link takes its place": archive(t, w("d/a"), h("h", "d/a"), s("d", "/etc"), h("h2", "d/passwd")),
		"hard link: to a device":                 archive(t, m{typ: '3', name: "null", major: 1, minor: 3}, h("h", "null")),
		"hard link: to a fifo":                   archive(t, m{typ: '6', name: "f"}, h("h", "f")),
		"hard link: empty target":                {packed: raw("h", hard, 0, "", nil)},
		"hard link: target not clean":            archive(t, w("a/b"), h("h", "a/../a/./b/")),
		"hard link: with a body":                 {packed: concat(raw("a", reg, 1, "x", nil), raw("h", hard, 5, "12345", func(h []byte) { copy(h[157:], "a") }))},
		"hard link: parent missing":              archive(t, w("a"), h("x/y/h", "a")),
		"hard link: 1,000 names":                 archive(t, append([]m{w("a")}, hardNames(1000)...)...),
	}
}

func hardNames(n int) (out []m) {
	for i := range n {
		out = append(out, m{typ: hard, name: fmt.Sprintf("h%03d", i), link: "a"})
	}
	return out
}

// whiteoutCases are names that AUFS, Docker and OCI give a meaning.
func whiteoutCases(t *testing.T) map[string]sample {
	w := func(name string) m { return m{typ: reg, name: name, body: "x"} }
	s := func(name, to string) m { return m{typ: sym, name: name, link: to} }
	return map[string]sample{
		"whiteout: of dot":                     archive(t, w(".wh..")),
		"whiteout: of dot dot":                 archive(t, w(".wh...")),
		"whiteout: of dot dot below":           archive(t, w("etc/.wh...")),
		"whiteout: of nothing":                 archive(t, w(".wh.")),
		"whiteout: at the root, absolute":      archive(t, w("/.wh.etc")),
		"whiteout: with a slash":               archive(t, w(".wh.etc/passwd")),
		"whiteout: out":                        archive(t, w("../../.wh.etc")),
		"whiteout: through a link":             archive(t, s("l", "../../../../etc"), w("l/.wh.passwd")),
		"whiteout: of a link":                  archive(t, s("l", "/etc"), w(".wh.l")),
		"whiteout: of a whiteout":              archive(t, w(".wh..wh.a")),
		"whiteout: is a directory":             archive(t, m{typ: dirT, name: ".wh.d"}),
		"whiteout: is a link":                  archive(t, s(".wh.a", "/etc/passwd")),
		"whiteout: is a device":                archive(t, m{typ: '4', name: ".wh.a", major: 8}),
		"whiteout: is a hard link":             archive(t, w("a"), m{typ: hard, name: ".wh.b", link: "a"}),
		"whiteout: with a body":                archive(t, m{typ: reg, name: ".wh.a", body: strings.Repeat("x", 5000)}, w("b")),
		"whiteout: twice":                      archive(t, w(".wh.a"), w(".wh.a")),
		"whiteout: then the file":              archive(t, w(".wh.a"), w("a")),
		"whiteout: after the file":             archive(t, w("a"), w(".wh.a")),
		"whiteout: after the directory":        archive(t, m{typ: dirT, name: "d"}, w("d/f"), w(".wh.d")),
		"whiteout: of its own parent":          archive(t, w("d/f"), w(".wh.d"), w("d/g")),
		"whiteout: parent below it":            archive(t, w(".wh.d"), w("d/f")),
		"whiteout: the AUFS book-keeping":      archive(t, w(".wh..wh.plnk"), w(".wh..wh.orph/x"), w(".wh..wh.aufs"), w("a")),
		"whiteout: a device 0:0":               archive(t, m{typ: '3', name: "a"}, m{typ: '4', name: "b"}),
		"whiteout: of 251 bytes":               archive(t, w(".wh."+strings.Repeat("n", 251))),
		"whiteout: upper case":                 archive(t, w(".WH.a")),
		"opaque: root":                         archive(t, w(".wh..wh..opq"), w("a")),
		"opaque: through a link":               archive(t, s("l", "../.."), w("l/.wh..wh..opq")),
		"opaque: a missing directory":          archive(t, w("d/.wh..wh..opq")),
		"opaque: over a file":                  archive(t, w("d"), w("d/.wh..wh..opq")),
		"opaque: then replaced by a file":      archive(t, w("d/.wh..wh..opq"), w("d")),
		"opaque: then replaced and made again": archive(t, w("d/.wh..wh..opq"), w("d"), m{typ: dirT, name: "e"}, m{typ: sym, name: "d", link: "e"}, w("d/f")),
		"opaque: parent replaced":              archive(t, w("p/d/.wh..wh..opq"), w("p"), w("q/f"), m{typ: dirT, name: "p"}, m{typ: dirT, name: "p/d"}),
		"opaque: whiteouts below":              archive(t, w("d/.wh..wh..opq"), w("d/.wh.a"), w("d/e/.wh.b"), w("d/f")),
		"opaque: is a directory":               archive(t, m{typ: dirT, name: "d/.wh..wh..opq/"}, w("d/f")),
		"opaque: by another name":              archive(t, w("d/.wh..opq"), w("d/.wh..wh.opq"), w("d/.wh.__dir_opaque")),
		"opaque: twice":                        archive(t, w("d/.wh..wh..opq"), w("d/.wh..wh..opq")),
		"opaque: 1,000 directories":            archive(t, opaqueDirs(1000)...),
	}
}

func opaqueDirs(n int) (out []m) {
	for i := range n {
		out = append(out, m{typ: reg, name: fmt.Sprintf("%03d/.wh..wh..opq", i)})
	}
	return out
}
