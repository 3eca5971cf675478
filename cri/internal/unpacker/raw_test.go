package unpacker_test

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
	"time"
)

// raw makes one ustar header by hand, for what archive/tar refuses to write, and its body, padded. edit may change the
// header before its checksum is made.
func raw(name string, typ byte, size int, body string, edit func(h []byte)) []byte {
	h := make([]byte, 512)
	copy(h, name)
	copy(h[100:], "0000644\x000000000\x000000000\x00")
	copy(h[124:], fmt.Sprintf("%011o\x00", size))
	copy(h[136:], "14000000000\x00")
	h[156] = typ
	copy(h[257:], "ustar\x0000")
	if edit != nil {
		edit(h)
	}
	seal(h)
	return append(h, padded(body)...)
}

// seal writes a header's checksum.
func seal(h []byte) {
	copy(h[148:], "        ")
	sum := 0
	for _, c := range h[:512] {
		sum += int(c)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
}

func padded(body string) []byte {
	return append([]byte(body), make([]byte, (512-len(body)%512)%512)...)
}

// concat joins members and ends the archive.
func concat(parts ...[]byte) (out []byte) {
	for _, p := range parts {
		out = append(out, p...)
	}
	return append(out, make([]byte, 1024)...)
}

// record is one PAX record, with its length.
func record(key, value string) string {
	n := len(key) + len(value) + 3
	for len(fmt.Sprint(n))+len(key)+len(value)+3 != n {
		n = len(fmt.Sprint(n)) + len(key) + len(value) + 3
	}
	return fmt.Sprintf("%d %s=%s\n", n, key, value)
}

// paxHeader is an extended header for the next member: keys and values in turn.
func paxHeader(kv ...string) []byte { return extended('x', kv...) }

// global is an extended header for all that follow.
func global(kv ...string) []byte { return extended('g', kv...) }

func extended(typ byte, kv ...string) []byte {
	var b strings.Builder
	for i := 0; i+1 < len(kv); i += 2 {
		b.WriteString(record(kv[i], kv[i+1]))
	}
	return raw("PaxHeaders.0/x", typ, b.Len(), b.String(), nil)
}

// gnuLong is GNU tar's way to a long name ('L') or link target ('K').
func gnuLong(typ byte, value string) []byte {
	return raw("././@LongLink", typ, len(value), value, gnu)
}

// gnu makes a header GNU tar's.
func gnu(h []byte) { copy(h[257:], "ustar  \x00") }

// base256 writes a number as GNU tar does where octal digits do not suffice: big endian, signed.
func base256(field []byte, v int64) {
	for i := range field {
		field[i] = byte(v >> 63)
	}
	binary.BigEndian.PutUint64(field[len(field)-8:], uint64(v)) //nolint:gosec // its bits
	field[0] |= 0x80
}

// oldSparse is a header of GNU tar's old sparse format: pairs of offset and length, then the real size.
func oldSparse(real int64, pairs ...int64) func(h []byte) {
	return func(h []byte) {
		gnu(h)
		for i, v := range pairs {
			copy(h[386+12*i:], fmt.Sprintf("%011o\x00", v))
		}
		base256(h[483:495], real)
	}
}

// m is one archive member.
type m struct {
	typ          byte
	name, link   string
	body         string
	mode         int64
	uid, gid     int
	pax          map[string]string
	major, minor int64
	at           time.Time
}

const (
	reg  = tar.TypeReg
	dirT = tar.TypeDir
	sym  = tar.TypeSymlink
	hard = tar.TypeLink
)

// archive writes members as archive/tar does.
func archive(t testing.TB, members ...m) sample {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range members {
		h := &tar.Header{
			Typeflag: e.typ, Name: e.name, Linkname: e.link, Mode: e.mode, Uid: e.uid, Gid: e.gid, Size: int64(len(e.body)),
			ModTime: e.at, PAXRecords: e.pax, Devmajor: e.major, Devminor: e.minor,
		}
		if h.ModTime.IsZero() {
			h.ModTime = time.Unix(1_600_000_000, 0)
		}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if e.pax != nil {
			h.Format = tar.FormatPAX
		}
		if e.typ == tar.TypeXGlobalHeader {
			h = &tar.Header{Typeflag: e.typ, PAXRecords: e.pax}
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatalf("%s: %v", e.name, err)
		}
		if _, err := w.Write([]byte(e.body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return sample{packed: b.Bytes()}
}
