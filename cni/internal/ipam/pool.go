// Package ipam gives out the addresses of one subnet. A pool is a file of fixed-size blocks in the state
// directory: a header with a cursor, then one 32-bit slot per address, so that taking and releasing an address
// reads and writes two blocks however many are in use. The caller holds the state lock, and rebuilds the pool
// from the attachment records (see [Pool.Reset]) whenever an operation did not end; the file itself therefore
// needs neither a journal nor fsync. A block whose checksum is wrong makes [ErrDamaged].
//
// The life of a slot:
//
//	never used --Take--> taken --Release--> resting --cooldown passed, or nothing else free--> taken
//
// Addresses are handed out in turn (next fit), so that one that was just released is the last to come back.
package ipam

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/berth-project/berth/proto/errs"
)

// ErrDamaged is a pool file that is torn or altered.
var ErrDamaged = errors.New("damaged pool file")

const (
	blockSize = 4096
	// perBlock slots and a checksum make a block.
	perBlock = blockSize/4 - 1
	// MaxSlots bounds a pool: 16 million addresses from the subnet's start. The file is sparse.
	MaxSlots = 1 << 24
	magic    = "BERTHPL1"

	never = 0
	taken = ^uint32(0)
)

// Pool is an open pool. It is not safe for concurrent use.
type Pool struct {
	subnet netip.Prefix
	f      *os.File
	cursor uint32
	blocks map[uint32]*block
}

type block struct {
	slots [perBlock]uint32
	dirty bool
}

// Window is the part of a pool that a network may use.
type Window struct {
	Start, End netip.Addr
	Exclude    []netip.Prefix
}

// Name is the pool's file name.
func Name(subnet netip.Prefix) string {
	return strings.NewReplacer("/", "_", ":", "-").Replace(subnet.String())
}

// ParseName is the subnet of a pool's file name.
func ParseName(name string) (netip.Prefix, error) {
	return netip.ParsePrefix(strings.NewReplacer("_", "/", "-", ":").Replace(name))
}

// Resume makes the turn go on behind an address; the zero Addr changes nothing.
func (p *Pool) Resume(a netip.Addr) {
	if slot, ok := p.slotOf(a); a.IsValid() && ok {
		p.cursor = slot + 1
	}
}

// Open opens or creates the pool of a subnet in dir.
func Open(dir string, subnet netip.Prefix) (*Pool, error) {
	f, err := os.OpenFile(filepath.Join(dir, Name(subnet)), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("pool %s: %w", subnet, err)
	}
	p := &Pool{subnet: subnet, f: f, blocks: map[uint32]*block{}}
	head := make([]byte, 64)
	n, err := f.ReadAt(head, 0)
	switch {
	case n == 0 && errors.Is(err, io.EOF):
		return p, nil
	case n != len(head) || string(head[:8]) != magic || checksum(head[:60], 0) != binary.LittleEndian.Uint32(head[60:]):
		_ = f.Close()
		return nil, fmt.Errorf("pool %s: header: %w", subnet, ErrDamaged)
	}
	p.cursor = binary.LittleEndian.Uint32(head[8:])
	return p, nil
}

// Close closes the file without writing.
func (p *Pool) Close() error { return p.f.Close() }

func checksum(b []byte, seed uint32) uint32 {
	return crc32.Update(seed, crc32.MakeTable(crc32.Castagnoli), b)
}

// Flush writes what changed: at most the header and the touched blocks.
func (p *Pool) Flush() error {
	for n, b := range p.blocks {
		if !b.dirty {
			continue
		}
		buf := make([]byte, 0, blockSize)
		for _, s := range b.slots {
			buf = binary.LittleEndian.AppendUint32(buf, s)
		}
		buf = binary.LittleEndian.AppendUint32(buf, checksum(buf, n+1))
		if _, err := p.f.WriteAt(buf, int64(n+1)*blockSize); err != nil {
			return fmt.Errorf("pool %s: %w", p.subnet, err)
		}
		b.dirty = false
	}
	head := make([]byte, 60, 64)
	copy(head, magic)
	binary.LittleEndian.PutUint32(head[8:], p.cursor)
	copy(head[12:], p.subnet.String())
	head = binary.LittleEndian.AppendUint32(head, checksum(head, 0))
	if _, err := p.f.WriteAt(head, 0); err != nil {
		return fmt.Errorf("pool %s: %w", p.subnet, err)
	}
	return nil
}

func (p *Pool) load(n uint32) (*block, error) {
	if b := p.blocks[n]; b != nil {
		return b, nil
	}
	b := &block{}
	buf := make([]byte, blockSize)
	got, err := p.f.ReadAt(buf, int64(n+1)*blockSize)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("pool %s: %w", p.subnet, err)
	}
	sum := binary.LittleEndian.Uint32(buf[blockSize-4:])
	fresh := got == 0 || sum == 0 && allZero(buf)
	if !fresh && (got != blockSize || checksum(buf[:blockSize-4], n+1) != sum) {
		return nil, fmt.Errorf("pool %s: block %d: %w", p.subnet, n, ErrDamaged)
	}
	for i := range b.slots {
		b.slots[i] = binary.LittleEndian.Uint32(buf[4*i:])
	}
	p.blocks[n] = b
	return b, nil
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

func (p *Pool) get(slot uint32) (uint32, error) {
	b, err := p.load(slot / perBlock)
	if err != nil {
		return 0, err
	}
	return b.slots[slot%perBlock], nil
}

func (p *Pool) set(slot, v uint32) error {
	b, err := p.load(slot / perBlock)
	if err != nil {
		return err
	}
	b.slots[slot%perBlock], b.dirty = v, true
	return nil
}

// slotOf is the address's distance from the subnet's start; ok is false outside the subnet or behind MaxSlots.
func (p *Pool) slotOf(a netip.Addr) (slot uint32, ok bool) {
	if !p.subnet.Contains(a) {
		return 0, false
	}
	lo, base := a.AsSlice(), p.subnet.Addr().AsSlice()
	for i := range lo {
		lo[i] ^= base[i]
	}
	for _, c := range lo[:len(lo)-4] {
		if c != 0 {
			return 0, false
		}
	}
	slot = binary.BigEndian.Uint32(lo[len(lo)-4:])
	return slot, slot < MaxSlots
}

func (p *Pool) addrOf(slot uint32) netip.Addr {
	b := p.subnet.Addr().AsSlice()
	low := b[len(b)-4:]
	binary.BigEndian.PutUint32(low, binary.BigEndian.Uint32(low)|slot)
	a, _ := netip.AddrFromSlice(b)
	return a
}

// bounds are the first and last slot of a window: never the subnet's own address, nor IPv4's broadcast.
func (p *Pool) bounds(w Window) (first, last uint32, err error) {
	hostBits := p.subnet.Addr().BitLen() - p.subnet.Bits()
	size := uint32(MaxSlots)
	if hostBits < 24 {
		size = 1 << hostBits
	}
	first, last = 0, size-1
	if hostBits > 1 {
		first = 1
		if p.subnet.Addr().Is4() && hostBits <= 24 {
			last--
		}
	}
	if w.Start.IsValid() {
		s, ok := p.slotOf(w.Start)
		if !ok {
			return 0, 0, errs.InvalidArgument.Errorf("rangeStart %s is not among the first %d addresses of %s", w.Start, MaxSlots, p.subnet)
		}
		first = max(first, s)
	}
	if w.End.IsValid() {
		if s, ok := p.slotOf(w.End); ok {
			last = min(last, s)
		}
	}
	if first > last {
		return 0, 0, errs.InvalidArgument.Errorf("the range of %s is empty", p.subnet)
	}
	return first, last, nil
}

func (w Window) excludes(a netip.Addr) bool {
	for _, x := range w.Exclude {
		if x.Contains(a) {
			return true
		}
	}
	return false
}
