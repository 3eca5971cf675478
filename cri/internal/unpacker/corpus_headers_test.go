package unpacker_test

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"
)

// headerCases are headers that lie about sizes, owners, times and types.
func headerCases(t *testing.T) map[string]sample {
	field := func(from, to int, value string) func(h []byte) {
		return func(h []byte) { copy(h[from:to], value) }
	}
	number := func(from, to int, v int64) func(h []byte) {
		return func(h []byte) { gnu(h); base256(h[from:to], v) }
	}
	file := func(edit func(h []byte)) sample { return sample{packed: concat(raw("a", reg, 1, "x", edit))} }
	pax := func(kv ...string) sample {
		return sample{packed: concat(paxHeader(kv...), raw("a", reg, 1, "x", nil))}
	}
	out := map[string]sample{
		"header: not a number as size":        file(field(124, 136, "12z45678901\x00")),
		"header: minus in a size":             file(field(124, 136, "-0000000001\x00")),
		"header: size with all bits":          file(field(124, 136, "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")),
		"header: size -1":                     file(number(124, 136, -1)),
		"header: size 2^63-1":                 file(number(124, 136, math.MaxInt64)),
		"header: size 8 GiB":                  file(field(124, 136, "77777777777\x00")),
		"header: size over 2^63":              file(func(h []byte) { gnu(h); copy(h[124:136], "\x80\x00\x00\x01\xff\xff\xff\xff\xff\xff\xff\xff") }),
		"header: short by one block":          {packed: raw("a", reg, 1024, "", nil)},
		"header: short by one byte":           {packed: raw("a", reg, 513, strings.Repeat("x", 512), nil)},
		"header: size eats the next":          {packed: concat(raw("a", reg, 512+1, "x", nil), raw("b", reg, 1, "y", nil))},
		"header: size hides the next":         {packed: concat(raw("a", reg, 0, "x", nil), raw("b", reg, 1, "y", nil))},
		"header: PAX size smaller":            {packed: concat(paxHeader("size", "0"), raw("a", reg, 1, "x", nil))},
		"header: PAX size larger":             {packed: concat(paxHeader("size", "513"), raw("a", reg, 1, "x", nil))},
		"header: PAX size negative":           pax("size", "-1"),
		"header: PAX size huge":               pax("size", "9223372036854775807"),
		"header: PAX size over 2^63":          pax("size", "9223372036854775808"),
		"header: PAX size no number":          pax("size", "0x10"),
		"header: global size":                 {packed: concat(global("size", "513"), raw("a", reg, 1, "x", nil))},
		"header: global everything":           {packed: concat(global("path", "/etc/passwd", "linkpath", "/etc", "uid", "7", "gid", "7", "mtime", "1", "mode", "4777"), raw("a", reg, 1, "x", nil))},
		"header: 100 globals":                 {packed: concat(append(manyGlobals(100), raw("a", reg, 1, "x", nil))...)},
		"header: mode with type bits":         file(field(100, 108, "0120777\x00")),
		"header: mode negative":               file(number(100, 108, -1)),
		"header: setuid and setgid":           archive(t, m{typ: reg, name: "su", body: "x", mode: 0o6755}, m{typ: dirT, name: "d", mode: 0o3777}, m{typ: reg, name: "d/f", gid: 5, mode: 0o2755}),
		"header: setgid parent":               archive(t, m{typ: dirT, name: "d", mode: 0o2755, gid: 9}, m{typ: reg, name: "d/a/f", body: "x"}, m{typ: dirT, name: "d/b", mode: 0o755}),
		"header: uid -1":                      file(number(108, 116, -1)),
		"header: uid 2^32-1":                  file(number(108, 116, 1<<32-1)),
		"header: uid 2^32":                    file(number(108, 116, 1<<32)),
		"header: uid 2^32-2":                  file(number(108, 116, 1<<32-2)),
		"header: gid 2^63-1":                  pax("gid", "9223372036854775807"),
		"header: PAX uid negative":            pax("uid", "-1"),
		"header: PAX uid no number":           pax("uid", "root"),
		"header: names of owners":             file(field(265, 329, "root\x00")),
		"header: time before 1970":            archive(t, m{typ: reg, name: "a", at: time.Unix(-1<<40, 0)}),
		"header: time -1":                     archive(t, m{typ: reg, name: "a", at: time.Unix(-1, 0)}),
		"header: time after 2446":             archive(t, m{typ: reg, name: "a", at: time.Unix(1<<35, 0)}),
		"header: time 2^63-1":                 pax("mtime", "9223372036854775807"),
		"header: time not a number":           pax("mtime", "yesterday"),
		"header: time NaN":                    pax("mtime", "NaN"),
		"header: time with 10,000 digits":     pax("mtime", "1."+strings.Repeat("9", 10_000)),
		"header: PAX access and change times": pax("atime", "99999999999", "ctime", "-5", "mtime", "5"),
		"header: device out of range":         archive(t, m{typ: '4', name: "a", major: 1 << 13}),
		"header: device minor out of range":   archive(t, m{typ: '3', name: "a", major: 1, minor: 1 << 20}),
		"header: device negative":             {packed: concat(raw("a", '3', 0, "", number(329, 337, -1)))},
		"header: device major of Linux":       archive(t, m{typ: '4', name: "sda", major: 8, mode: 0o666}, m{typ: '3', name: "mem", major: 1, minor: 1, mode: 0o666}),
		"header: device with a body":          {packed: concat(raw("a", '3', 5, "12345", nil), raw("b", reg, 1, "y", nil))},
		"header: fifo":                        archive(t, m{typ: '6', name: "f", mode: 0o644}),
		"header: contiguous file":             {packed: concat(raw("a", '7', 1, "x", nil))},
		"header: unknown type":                {packed: concat(raw("a", 'Z', 0, "", nil))},
		"header: socket":                      {packed: concat(raw("a", 's', 0, "", nil))},
		"header: GNU directory dump":          {packed: concat(raw("a", 'D', 3, "Yx\x00", gnu))},
		"header: GNU multi-volume":            {packed: concat(raw("a", 'M', 1, "x", gnu))},
		"header: GNU volume name":             {packed: concat(raw("vol", 'V', 0, "", gnu), raw("b", reg, 1, "y", nil))},
		"header: checksum wrong":              {packed: concat(func() []byte { h := raw("a", reg, 1, "x", nil); h[0] = 'b'; return h }())},
		"header: checksum signed":             {packed: concat(func() []byte { h := raw("a\xff", reg, 1, "x", nil); signed(h); return h }())},
		"header: no magic":                    file(func(h []byte) { copy(h[257:], make([]byte, 8)) }),
		"header: star magic":                  file(func(h []byte) { copy(h[508:], "tar\x00") }),
		"header: PAX record too short":        {packed: concat(raw("x", 'x', 6, "9 a=b\n", nil), raw("a", reg, 1, "x", nil))},
		"header: PAX record of length 0":      {packed: concat(raw("x", 'x', 6, "0 a=b\n", nil), raw("a", reg, 1, "x", nil))},
		"header: PAX record without newline":  {packed: concat(raw("x", 'x', 6, "6 a=bc", nil), raw("a", reg, 1, "x", nil))},
		"header: PAX length overflows":        {packed: concat(raw("x", 'x', 30, "99999999999999999999999999 a=b\n"[:30], nil), raw("a", reg, 1, "x", nil))},
		"header: PAX key empty":               {packed: concat(paxHeader("", "v"), raw("a", reg, 1, "x", nil))},
		"header: PAX of 2 MiB":                {packed: concat(paxHeader("comment", strings.Repeat("c", 2<<20)), raw("a", reg, 1, "x", nil))},
		"header: PAX before PAX":              {packed: concat(paxHeader("path", "one"), paxHeader("path", "../two"), raw("a", reg, 1, "x", nil))},
		"header: PAX and nothing":             {packed: concat(paxHeader("path", "../x"))},
	}
	for name, s := range sparseCases() {
		out[name] = s
	}
	whole := archive(t, m{typ: dirT, name: "d"}, m{typ: reg, name: "d/f", body: strings.Repeat("x", 700)}, m{typ: sym, name: "l", link: "d"}).packed
	for at := 0; at < len(whole); at += 512 {
		out[fmt.Sprintf("truncated: at block %d", at/512)] = sample{packed: whole[:at]}
		out[fmt.Sprintf("truncated: in block %d", at/512)] = sample{packed: whole[:at+300]}
	}
	return out
}

func manyGlobals(n int) (out [][]byte) {
	for i := range n {
		out = append(out, global("comment", fmt.Sprint(i)))
	}
	return out
}

// signed seals a header the way old tars did, who took bytes for signed.
func signed(h []byte) {
	copy(h[148:], "        ")
	sum := 0
	for _, c := range h[:512] {
		sum += int(int8(c)) //nolint:gosec // that is the point
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
}

// sparseCases are files with holes in all of the formats that there are (CVE-2025-58183 and CVE-2026-32288 were in
// their maps).
func sparseCases() map[string]sample {
	file := func(edit func(h []byte)) sample { return sample{packed: concat(raw("a", 'S', 1, "x", edit))} }
	pax1 := func(m string, kv ...string) sample {
		head := paxHeader(append([]string{"GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.name", "../named"}, kv...)...)
		body := string(padded(m)) + "x"
		return sample{packed: concat(head, raw("a", reg, len(body), body, nil))}
	}
	return map[string]sample{
		"sparse: old":                       file(oldSparse(4096, 4095, 1)),
		"sparse: old, of 8 EiB":             file(oldSparse(math.MaxInt64, 0, 1)),
		"sparse: old, negative":             file(oldSparse(-1, 0, 1)),
		"sparse: old, more than is there":   file(oldSparse(4096, 0, 4096)),
		"sparse: old, out of order":         file(oldSparse(4096, 4000, 1, 0, 0)),
		"sparse: old, endless extension":    {packed: concat(raw("a", 'S', 1, strings.Repeat("\x01", 512), func(h []byte) { oldSparse(4096, 0, 1)(h); h[482] = 1 }))},
		"sparse: PAX 0.0":                   {packed: concat(paxHeader("GNU.sparse.size", "4096", "GNU.sparse.numblocks", "1", "GNU.sparse.offset", "4095", "GNU.sparse.numbytes", "1"), raw("a", reg, 1, "x", nil))},
		"sparse: PAX 0.1":                   {packed: concat(paxHeader("GNU.sparse.name", "/named", "GNU.sparse.size", "4096", "GNU.sparse.numblocks", "1", "GNU.sparse.map", "4095,1"), raw("a", reg, 1, "x", nil))},
		"sparse: PAX 0.1, map no numbers":   {packed: concat(paxHeader("GNU.sparse.size", "4096", "GNU.sparse.numblocks", "1", "GNU.sparse.map", "a,b"), raw("a", reg, 1, "x", nil))},
		"sparse: PAX 0.1, 2^60 blocks":      {packed: concat(paxHeader("GNU.sparse.size", "4096", "GNU.sparse.numblocks", "1152921504606846976", "GNU.sparse.map", "0,1"), raw("a", reg, 1, "x", nil))},
		"sparse: PAX 1.0":                   pax1("1\n4095\n1\n", "GNU.sparse.realsize", "4096"),
		"sparse: PAX 1.0, of 1 TiB":         pax1("1\n0\n1\n", "GNU.sparse.realsize", "1099511627776"),
		"sparse: PAX 1.0, within the limit": pax1("1\n0\n1\n", "GNU.sparse.realsize", "16777216"),
		"sparse: PAX 1.0, map without end":  pax1(strings.Repeat("9", 511)+"\n", "GNU.sparse.realsize", "4096"),
		"sparse: PAX 1.0, 10^9 entries":     pax1("1000000000\n", "GNU.sparse.realsize", "4096"),
		"sparse: PAX 1.0, overlapping":      pax1("2\n0\n1\n0\n1\n", "GNU.sparse.realsize", "4096"),
		"sparse: PAX 1.0, negative":         pax1("1\n-5\n1\n", "GNU.sparse.realsize", "4096"),
		"sparse: PAX 9.9":                   {packed: concat(paxHeader("GNU.sparse.major", "9", "GNU.sparse.minor", "9"), raw("a", reg, 1, "x", nil))},
	}
}

// attributeCases are extended attributes.
func attributeCases(t *testing.T) map[string]sample {
	one := func(typ byte, kv ...string) sample {
		pax := map[string]string{}
		for i := 0; i+1 < len(kv); i += 2 {
			pax["SCHILY.xattr."+kv[i]] = kv[i+1]
		}
		e := m{typ: typ, name: "a", pax: pax}
		if typ == sym {
			e.link = "/etc/passwd"
		}
		return archive(t, e)
	}
	capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	return map[string]sample{
		"attribute: overlay's own":              one(dirT, "trusted.overlay.opaque", "y", "trusted.overlay.redirect", "/etc", "trusted.overlay.origin", "x"),
		"attribute: overlay's, for users":       one(dirT, "user.overlay.opaque", "y", "user.overlay.redirect", "/etc", "user.ok", "v"),
		"attribute: overlay's metacopy":         one(reg, "trusted.overlay.metacopy", "", "user.overlay.metacopy", "", "user.overlay.redirect", "/etc/shadow"),
		"attribute: trusted":                    one(reg, "trusted.other", "v"),
		"attribute: a label":                    one(reg, "security.selinux", "system_u:object_r:etc_t", "security.apparmor", "x", "security.ima", "x", "security.evm", "x"),
		"attribute: capability":                 one(reg, "security.capability", capability),
		"attribute: capability, nonsense":       one(reg, "security.capability", "\xff\xff\xff"),
		"attribute: capability on a link":       one(sym, "security.capability", capability),
		"attribute: ACL":                        one(reg, "system.posix_acl_access", "\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x04\x00\x04\x00\xff\xff\xff\xff\x20\x00\x04\x00\xff\xff\xff\xff"),
		"attribute: ACL, nonsense":              one(reg, "system.posix_acl_access", "nonsense"),
		"attribute: default ACL on a file":      one(reg, "system.posix_acl_default", "\x02\x00\x00\x00\x01\x00\x07\x00\xff\xff\xff\xff\x04\x00\x05\x00\xff\xff\xff\xff\x20\x00\x05\x00\xff\xff\xff\xff"),
		"attribute: system":                     one(reg, "system.nfs4_acl", "x"),
		"attribute: without a namespace":        one(reg, "opaque", "y"),
		"attribute: empty name":                 one(reg, "", "y"),
		"attribute: user, nothing more":         one(reg, "user.", "y"),
		"attribute: name of 255 bytes":          one(reg, "user."+strings.Repeat("k", 250), "v"),
		"attribute: name of 256 bytes":          one(reg, "user."+strings.Repeat("k", 251), "v"),
		"attribute: value of 70,000 bytes":      one(reg, "user.big", strings.Repeat("v", 70_000)),
		"attribute: value of 60,000 bytes":      one(reg, "user.big", strings.Repeat("v", 60_000)),
		"attribute: value with NUL":             {packed: concat(paxHeader("SCHILY.xattr.user.k", "a\x00b"), raw("a", reg, 1, "x", nil))},
		"attribute: name with NUL":              {packed: concat(paxHeader("SCHILY.xattr.user.k\x00trusted.overlay.opaque", "y"), raw("a", reg, 1, "x", nil))},
		"attribute: name in capitals":           one(reg, "USER.k", "v", "Trusted.overlay.opaque", "y"),
		"attribute: on the root":                archive(t, m{typ: dirT, name: "./", pax: map[string]string{"SCHILY.xattr.user.k": "v"}}, m{typ: reg, name: "a"}),
		"attribute: libarchive's":               {packed: concat(paxHeader("LIBARCHIVE.xattr.user.k", "dg", "LIBARCHIVE.xattr.trusted.overlay.opaque", "eQ"), raw("a", reg, 1, "x", nil))},
		"attribute: global":                     {packed: concat(global("SCHILY.xattr.user.k", "v"), raw("a", reg, 1, "x", nil))},
		"attribute: through a link":             archive(t, m{typ: sym, name: "a", link: "/etc/passwd"}, m{typ: reg, name: "a", body: "x", pax: map[string]string{"SCHILY.xattr.user.k": "v"}}),
		"attribute: on a device and a whiteout": archive(t, m{typ: '3', name: "n", major: 1, minor: 3, pax: map[string]string{"SCHILY.xattr.user.k": "v"}}, m{typ: reg, name: ".wh.a", pax: map[string]string{"SCHILY.xattr.user.k": "v"}}),
	}
}
