// Package ldcache reads and writes glibc's ld.so.cache, format "glibc-ld.so.cache1.1" (elf/cache.c and
// sysdeps/generic/dl-cache.h of glibc 2.2 to 2.42), alone or behind the older "ld.so-1.7.0" table. It is pure: the
// cache is an image's and untrusted, every offset in it is checked, and nothing of it is followed.
package ldcache

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
)

// Entry maps a name that programs ask for to a library's path.
type Entry struct {
	Flags int32 // type and architecture, FLAG_* of ldconfig.h
	Name  string
	Path  string
	OS    uint32 // osversion, unused since glibc 2.36
	HWCap uint64 // with bit 62 set: an index into Cache.HWCaps
}

// Cache is the content of a file.
type Cache struct {
	Entries []Entry
	// HWCaps are the subdirectories of glibc-hwcaps that entries refer to; Generator is who wrote the file.
	HWCaps    []string
	Generator string
}

// Limits of what is read: a full desktop has 5,000 entries in 300 KiB.
const (
	maxEntries = 200_000
	maxString  = 4096
)

const (
	oldMagic   = "ld.so-1.7.0"
	newMagic   = "glibc-ld.so.cache1.1"
	oldHeader  = 16 // magic and its end, number of entries
	oldEntry   = 12
	newHeader  = 48
	entrySize  = 24
	littleEnd  = 2 // cache_file_new_flags_endian_little
	extMagic   = 0xeaa42174
	extGen     = 0
	extHWCaps  = 1
	hwcapIndex = uint64(1) << 62
)

// ErrFormat is returned (wrapped) for what is no cache of this format.
var ErrFormat = errors.New("not a glibc ld.so.cache")

func bad(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrFormat}, args...)...)
}

// Flags are those of this machine's 64-bit libraries.
func Flags() int32 {
	if runtime.GOARCH == "arm64" {
		return 0x0a03 // FLAG_AARCH64_LIB64 | FLAG_ELF_LIBC6
	}
	return 0x0303 // FLAG_X8664_LIB64 | FLAG_ELF_LIBC6
}

// Parse reads a file.
func Parse(b []byte) (*Cache, error) {
	if bytes.HasPrefix(b, []byte(oldMagic)) {
		if len(b) < oldHeader {
			return nil, bad("%d bytes", len(b))
		}
		skip := oldHeader + int(binary.LittleEndian.Uint32(b[12:]))*oldEntry
		skip = (skip + 7) &^ 7
		if skip < 0 || skip >= len(b) {
			return nil, bad("it ends within its old table")
		}
		b = b[skip:]
	}
	if len(b) < newHeader || !bytes.HasPrefix(b, []byte(newMagic)) {
		return nil, bad("no header %q", newMagic)
	}
	if end := b[28] & 3; end != 0 && end != littleEnd {
		return nil, bad("it is for another byte order")
	}
	n := int(binary.LittleEndian.Uint32(b[20:]))
	if n > maxEntries || newHeader+n*entrySize > len(b) {
		return nil, bad("%d entries in %d bytes", n, len(b))
	}
	c := &Cache{Entries: make([]Entry, 0, n)}
	for i := range n {
		e := b[newHeader+i*entrySize:]
		name, err := text(b, binary.LittleEndian.Uint32(e[4:]))
		if err != nil {
			return nil, err
		}
		path, err := text(b, binary.LittleEndian.Uint32(e[8:]))
		if err != nil {
			return nil, err
		}
		c.Entries = append(c.Entries, Entry{
			Flags: int32(binary.LittleEndian.Uint32(e)), //nolint:gosec // bits
			Name:  name, Path: path, OS: binary.LittleEndian.Uint32(e[12:]), HWCap: binary.LittleEndian.Uint64(e[16:]),
		})
	}
	return c, c.extensions(b)
}

// text is the string at an offset.
func text(b []byte, at uint32) (string, error) {
	if uint64(at) >= uint64(len(b)) {
		return "", bad("a string at %d of %d bytes", at, len(b))
	}
	s := b[at:min(int(at)+maxString, len(b))]
	n := bytes.IndexByte(s, 0)
	if n < 0 {
		return "", bad("a string at %d has no end", at)
	}
	return string(s[:n]), nil
}

// extensions reads the directory of glibc 2.33: who wrote the file, and the names of hardware capabilities.
func (c *Cache) extensions(b []byte) error {
	at := uint64(binary.LittleEndian.Uint32(b[32:]))
	if at == 0 {
		return nil
	}
	if at%4 != 0 || at+8 > uint64(len(b)) || binary.LittleEndian.Uint32(b[at:]) != extMagic {
		return bad("no extension directory at %d", at)
	}
	n := uint64(binary.LittleEndian.Uint32(b[at+4:]))
	if n > 64 || at+8+n*16 > uint64(len(b)) {
		return bad("%d extensions", n)
	}
	for i := range n {
		s := b[at+8+i*16:]
		tag, off, size := binary.LittleEndian.Uint32(s), uint64(binary.LittleEndian.Uint32(s[8:])), uint64(binary.LittleEndian.Uint32(s[12:]))
		if off+size > uint64(len(b)) || size > 1<<16 {
			return bad("extension %d of %d bytes at %d", tag, size, off)
		}
		switch tag {
		case extGen:
			c.Generator = string(b[off : off+size])
		case extHWCaps:
			for k := uint64(0); k+4 <= size; k += 4 {
				name, err := text(b, binary.LittleEndian.Uint32(b[off+k:]))
				if err != nil {
					return err
				}
				c.HWCaps = append(c.HWCaps, name)
			}
		}
	}
	return nil
}

// Merge puts libraries (name -> path) in front of a cache. An image's own variants of them for better processors
// are left out: the loader would take those first.
func Merge(c *Cache, libraries map[string]string) *Cache {
	out := &Cache{HWCaps: c.HWCaps, Generator: c.Generator}
	for name, path := range libraries {
		out.Entries = append(out.Entries, Entry{Flags: Flags(), Name: name, Path: path})
	}
	ours := len(out.Entries)
	for _, e := range c.Entries {
		if _, same := libraries[e.Name]; same && e.Flags == Flags() && (e.HWCap != 0 || e.Path == libraries[e.Name]) {
			continue
		}
		if e.HWCap&hwcapIndex != 0 && e.HWCap&0xffffffff >= uint64(len(c.HWCaps)) {
			continue // refers to a capability that is not named
		}
		out.Entries = append(out.Entries, e)
	}
	slices.SortStableFunc(out.Entries[:ours], func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
	// the loader's binary search expects names from the last to the first; among equals the order stays, ours first
	slices.SortStableFunc(out.Entries, func(a, b Entry) int { return compare(b.Name, a.Name) })
	return out
}

// compare is _dl_cache_libcmp: numbers within names by value, before letters' order.
func compare(a, b string) int {
	digit := func(s string, i int) bool { return i < len(s) && s[i] >= '0' && s[i] <= '9' }
	number := func(s string, i int) (int32, int) {
		var v int32
		for ; digit(s, i); i++ {
			v = v*10 + int32(s[i]-'0') // wraps as glibc's does
		}
		return v, i
	}
	i, j := 0, 0
	for i < len(a) {
		switch {
		case digit(a, i) && digit(b, j):
			var x, y int32
			x, i = number(a, i)
			y, j = number(b, j)
			if x != y {
				return int(x) - int(y)
			}
		case digit(a, i):
			return 1
		case digit(b, j):
			return -1
		case j >= len(b):
			return int(int8(a[i])) //nolint:gosec // a signed char against the end
		case a[i] != b[j]:
			return int(int8(a[i])) - int(int8(b[j])) //nolint:gosec // signed chars, as on x86 and in glibc's ABI
		default:
			i, j = i+1, j+1
		}
	}
	if j < len(b) {
		return -int(int8(b[j])) //nolint:gosec // as above
	}
	return 0
}
