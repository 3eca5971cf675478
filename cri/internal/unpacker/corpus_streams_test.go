package unpacker_test

import (
	"bytes"
	"compress/flate"
	"fmt"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

func zst(t testing.TB, b []byte, opts ...zstd.EOption) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil, opts...)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close() //nolint:errcheck // nothing buffered
	return w.EncodeAll(b, nil)
}

// streamCases are compressed forms.
func streamCases(t *testing.T) map[string]sample {
	plain := archive(t, m{typ: reg, name: "a", body: "x"}, m{typ: reg, name: "b", body: strings.Repeat("0123456789", 20_000)}).packed
	half := len(plain) / 2
	zip := gz(plain)
	flip := func(b []byte, at int) []byte {
		b = bytes.Clone(b)
		b[(at+len(b))%len(b)] ^= 1
		return b
	}
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	skippable := func(n int) []byte {
		return append([]byte{0x50, 0x2a, 0x4d, 0x18, byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24)}, make([]byte, n)...)
	}
	ok := func(packed []byte) sample { return sample{packed, plain} }
	return map[string]sample{
		"stream: empty":                      {packed: []byte{}},
		"stream: one byte":                   {packed: []byte{0}},
		"stream: zeros":                      {packed: make([]byte, 4096)},
		"stream: text":                       {packed: []byte(strings.Repeat("<html>", 200))},
		"stream: plain":                      ok(plain),
		"stream: no end marker":              {packed: plain[:len(plain)-1024]},
		"stream: garbage after the archive":  {packed: join(plain, []byte(strings.Repeat("garbage", 1000)))},
		"stream: a second archive after it":  {packed: join(plain, archive(t, m{typ: reg, name: "../../second", body: "x"}).packed)},
		"stream: one zero block, then more":  {packed: join(plain[:len(plain)-1024], make([]byte, 512), archive(t, m{typ: reg, name: "second", body: "x"}).packed)},
		"gzip: plain":                        ok(zip),
		"gzip: members":                      ok(join(gz(plain[:half]), gz(plain[half:]))),
		"gzip: 1,000 members":                ok(manyMembers(plain, 1000)),
		"gzip: an empty member in the midst": ok(join(gz(plain[:half]), gz(nil), gz(plain[half:]))),
		"gzip: zeros after":                  ok(join(zip, make([]byte, 1000))),
		"gzip: garbage after":                ok(join(zip, []byte("garbage"))),
		"gzip: half a member after":          {join(zip, zip[:20]), plain},
		"gzip: with name, comment, extra":    ok(gzipWith(plain, func(w *gzip.Writer) { w.Name, w.Comment, w.Extra = "../../etc/passwd", "\n", make([]byte, 60_000) })),
		"gzip: a comment of 1 MiB":           ok(gzipWith(plain, func(w *gzip.Writer) { w.Comment = strings.Repeat("c", 1<<20) })),
		"gzip: header only":                  {packed: zip[:10]},
		"gzip: magic only":                   {packed: zip[:2]},
		"gzip: method 9":                     {packed: join([]byte{0x1f, 0x8b, 9}, zip[3:])},
		"gzip: reserved flags":               {packed: join([]byte{0x1f, 0x8b, 8, 0xff}, zip[4:])},
		"gzip: checksum wrong":               {packed: flip(zip, -5)},
		"gzip: length wrong":                 {packed: flip(zip, -1)},
		"gzip: a bit in the header":          {packed: flip(zip, 3)},
		"gzip: a bit in the first block":     {packed: flip(zip, 12)},
		"gzip: truncated in the midst":       {packed: zip[:len(zip)/2]},
		"gzip: truncated before the sum":     {packed: zip[:len(zip)-8]},
		"gzip: gzip inside":                  {packed: gz(zip), plain: zip},
		"gzip: zstd inside":                  {packed: gz(zst(t, plain)), plain: zst(t, plain)},
		"gzip: bomb in a file":               {packed: gz(archive(t, m{typ: reg, name: "bomb", body: strings.Repeat("\x00", 40<<20)}).packed)},
		"gzip: bomb after the archive":       {packed: gz(join(archive(t).packed, make([]byte, 150<<20)))},
		"gzip: bomb of empty members":        {packed: gzipEmpty(100_000), plain: []byte{}},
		"deflate without gzip":               {packed: deflated(plain)},
		"zlib":                               {packed: join([]byte{0x78, 0x9c}, deflated(plain))},
		"bzip2":                              {packed: join([]byte("BZh91AY&SY"), make([]byte, 600))},
		"xz":                                 {packed: join([]byte("\xfd7zXZ\x00"), make([]byte, 600))},
		"zip":                                {packed: join([]byte("PK\x03\x04"), make([]byte, 600))},
		"zstd: plain":                        ok(zst(t, plain)),
		"zstd: frames":                       ok(join(zst(t, plain[:half]), zst(t, plain[half:]))),
		"zstd: skippable first":              ok(join(skippable(3), zst(t, plain))),
		"zstd: skippable of 4 MiB":           ok(join(skippable(4<<20), zst(t, plain))),
		"zstd: skippable that ends early":    {packed: join(skippable(3)[:9])},
		"zstd: nothing but skippable":        {packed: skippable(100), plain: []byte{}},
		"zstd: garbage after":                {packed: join(zst(t, plain), []byte("garbage"))},
		"zstd: magic only":                   {packed: []byte{0x28, 0xb5, 0x2f, 0xfd}},
		"zstd: truncated":                    {packed: zst(t, plain)[:60]},
		"zstd: a bit in a block":             {packed: flip(zst(t, plain), 40)},
		"zstd: checksum wrong":               {packed: flip(zst(t, plain), -1)},
		"zstd: window of 64 MiB":             ok(zst(t, plain, zstd.WithWindowSize(64<<20))),
		"zstd: window of 128 MiB, streamed":  {zstdStream(t, plain, 128<<20), plain},
		"zstd: window of 256 MiB":            {packed: zstdHeader(0x90)},
		"zstd: window of 2 GiB":              {packed: zstdHeader(0xa8)},
		"zstd: window of 3.75 TiB":           {packed: zstdHeader(0xff)},
		"zstd: content size of 2^64-1":       {packed: []byte{0x28, 0xb5, 0x2f, 0xfd, 0xe0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0, 0}},
		"zstd: a dictionary":                 {packed: []byte{0x28, 0xb5, 0x2f, 0xfd, 0x23, 1, 2, 3, 4, 0, 1, 0, 0}},
		"zstd: reserved bit":                 {packed: []byte{0x28, 0xb5, 0x2f, 0xfd, 0x08, 0x00, 1, 0, 0}},
		"zstd: reserved block":               {packed: []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x58, 7, 0, 0}},
		"zstd: bomb":                         {packed: zst(t, archive(t, m{typ: reg, name: "bomb", body: strings.Repeat("\x00", 40<<20)}).packed)},
		"zstd: bomb of repeated bytes":       {packed: zstdRLE(2000)},
		"lz4":                                {packed: join([]byte{0x04, 0x22, 0x4d, 0x18}, make([]byte, 600))},
		"legacy zstd":                        {packed: join([]byte{0x27, 0xb5, 0x2f, 0xfd}, make([]byte, 600))},
	}
}

func manyMembers(plain []byte, n int) (out []byte) {
	for i := range n {
		out = append(out, gz(plain[len(plain)*i/n:len(plain)*(i+1)/n])...)
	}
	return out
}

func gzipEmpty(n int) (out []byte) { return bytes.Repeat(gz(nil), n) }

func gzipWith(plain []byte, set func(*gzip.Writer)) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	set(w)
	_, _ = w.Write(plain)
	_ = w.Close()
	return b.Bytes()
}

func deflated(plain []byte) []byte {
	var b bytes.Buffer
	w, _ := flate.NewWriter(&b, 6)
	_, _ = w.Write(plain)
	_ = w.Close()
	return b.Bytes()
}

// zstdHeader is a frame with a window descriptor (RFC 8878, 3.1.1.1.2) and an empty last block.
func zstdHeader(window byte) []byte {
	return []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, window, 1, 0, 0}
}

// zstdStream compresses without telling the content's size, so that the frame asks for the whole window.
func zstdStream(t testing.TB, plain []byte, window int) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := zstd.NewWriter(&b, zstd.WithWindowSize(window), zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// zstdRLE is n blocks of 128 KiB of zeros, four bytes each.
func zstdRLE(n int) []byte {
	b := []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x58}
	const size = 128 << 10
	for i := range n {
		h := uint32(size)<<3 | 1<<1
		if i == n-1 {
			h |= 1
		}
		b = append(b, byte(h), byte(h>>8), byte(h>>16), 0)
	}
	return b
}

// boundCases are archives that are too much.
func boundCases(t *testing.T) map[string]sample {
	big := strings.Repeat("x", 1<<20)
	var dirs, links, implicit []m
	for i := range 5000 {
		dirs = append(dirs, m{typ: dirT, name: fmt.Sprintf("%s/%d", strings.Repeat("n", 200), i)})
		links = append(links, m{typ: hard, name: fmt.Sprint(i), link: strings.Repeat("t/", 100) + fmt.Sprint(i)})
		implicit = append(implicit, m{typ: reg, name: fmt.Sprintf("%d/%s/f", i, strings.Repeat("n", 200))})
	}
	return map[string]sample{
		"bound: bytes in many files":        {packed: gz(archive(t, distinct(20, big)...).packed)},
		"bound: bytes in one file":          {packed: gz(archive(t, repeat(20, m{typ: reg, name: "f", body: big})...).packed)},
		"bound: bytes exactly":              {packed: gz(archive(t, distinct(16, big)...).packed), plain: archive(t, distinct(16, big)...).packed},
		"bound: 20,001 entries":             {packed: gz(archive(t, numbered(20_001, "%d")...).packed)},
		"bound: 20,001 times the same":      {packed: gz(archive(t, repeat(20_001, m{typ: dirT, name: "d"})...).packed)},
		"bound: 20,001 entries for nothing": {packed: gz(archive(t, repeat(20_001, m{typ: tarGlobal, pax: map[string]string{"comment": "x"}})...).packed)},
		"bound: names of directories":       {packed: gz(archive(t, dirs...).packed)},
		"bound: names of hard links":        {packed: gz(archive(t, links...).packed)},
		"bound: names of parents":           {packed: gz(archive(t, implicit...).packed)},
		"bound: names of whiteouts":         {packed: gz(archive(t, whiteouts(6000)...).packed)},
		"bound: a tree deep and wide":       archive(t, m{typ: reg, name: strings.Repeat("a/", 600) + "f"}, m{typ: reg, name: strings.Repeat("b/", 600) + "f"}),
		"bound: deep, then replaced":        archive(t, m{typ: reg, name: strings.Repeat("d/", 900) + "f", body: "x"}, m{typ: reg, name: "d", body: "y"}),
	}
}

const tarGlobal = 'g'

func distinct(n int, body string) (out []m) {
	for i := range n {
		out = append(out, m{typ: reg, name: fmt.Sprintf("f%02d", i), body: body})
	}
	return out
}

func whiteouts(n int) (out []m) {
	for i := range n {
		out = append(out, m{typ: reg, name: fmt.Sprintf(".wh.%s%d", strings.Repeat("n", 200), i)})
	}
	return out
}
