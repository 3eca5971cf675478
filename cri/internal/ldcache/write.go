package ldcache

import (
	"encoding/binary"
)

// Bytes is the file, in the new format alone, as ldconfig has written it since glibc 2.32. Entries have to be in
// the loader's order: see Merge.
func (c *Cache) Bytes() []byte {
	w := &writer{offsets: map[string]uint32{}, base: uint32(newHeader + len(c.Entries)*entrySize)} //nolint:gosec // bounded by maxEntries
	head := make([]byte, 0, w.base)
	head = append(head, newMagic...)
	head = binary.LittleEndian.AppendUint32(head, uint32(len(c.Entries))) //nolint:gosec // as above
	head = append(head, make([]byte, newHeader-len(head))...)
	head[28] = littleEnd
	for _, e := range c.Entries {
		head = binary.LittleEndian.AppendUint32(head, uint32(e.Flags)) //nolint:gosec // bits
		head = binary.LittleEndian.AppendUint32(head, w.add(e.Name))
		head = binary.LittleEndian.AppendUint32(head, w.add(e.Path))
		head = binary.LittleEndian.AppendUint32(head, e.OS)
		head = binary.LittleEndian.AppendUint64(head, e.HWCap)
	}
	var caps []byte
	for _, h := range c.HWCaps {
		caps = binary.LittleEndian.AppendUint32(caps, w.add(h))
	}
	binary.LittleEndian.PutUint32(head[24:], uint32(len(w.strings))) //nolint:gosec // 4 KiB a string at most
	for len(w.strings)%4 != 0 {
		w.strings = append(w.strings, 0)
	}
	at := w.base + uint32(len(w.strings)) //nolint:gosec // as above
	binary.LittleEndian.PutUint32(head[32:], at)
	out := append(head, w.strings...)
	// two sections, then what they point at: capabilities first, because they are words
	out = binary.LittleEndian.AppendUint32(out, extMagic)
	out = binary.LittleEndian.AppendUint32(out, 2)
	data := at + 8 + 2*16
	section := func(tag, size uint32) {
		for _, v := range []uint32{tag, 0, data, size} {
			out = binary.LittleEndian.AppendUint32(out, v)
		}
		data += size
	}
	section(extHWCaps, uint32(len(caps)))     //nolint:gosec // at most 64 KiB were read
	section(extGen, uint32(len(c.Generator))) //nolint:gosec // as above
	return append(append(out, caps...), c.Generator...)
}

// writer collects strings, each once.
type writer struct {
	base    uint32
	strings []byte
	offsets map[string]uint32
}

func (w *writer) add(s string) uint32 {
	if at, ok := w.offsets[s]; ok {
		return at
	}
	at := w.base + uint32(len(w.strings)) //nolint:gosec // bounded by what Parse reads
	w.strings = append(append(w.strings, s...), 0)
	w.offsets[s] = at
	return at
}
