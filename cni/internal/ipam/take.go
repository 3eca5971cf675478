package ipam

import (
	"maps"
	"net/netip"

	"github.com/berth-project/berth/proto/errs"
)

// Clock is the time in seconds since boot, suspended time included, plus one: never zero.
type Clock uint32

// Take takes the next address of the window that has rested for cooldown seconds; if there is none, the one that
// has rested longest. It fails with ResourceExhausted when every address is taken.
func (p *Pool) Take(w Window, now Clock, cooldown int) (netip.Addr, error) {
	first, last, err := p.bounds(w)
	if err != nil {
		return netip.Addr{}, err
	}
	slot := p.cursor
	if slot < first || slot > last {
		slot = first
	}
	oldest, found := uint32(0), false
	var oldestAt uint32
	for range last - first + 1 {
		v, err := p.get(slot)
		if err != nil {
			return netip.Addr{}, err
		}
		if v != taken && !w.excludes(p.addrOf(slot)) {
			rested := int64(now) - int64(v)
			if v == never || rested >= int64(cooldown) || rested < 0 {
				return p.take(slot, last, first)
			}
			if !found || v < oldestAt {
				oldest, oldestAt, found = slot, v, true
			}
		}
		if slot++; slot > last {
			slot = first
		}
	}
	if !found {
		return netip.Addr{}, errs.ResourceExhausted.Errorf("no address is left in range %s-%s of %s: %d are in use or excluded",
			p.addrOf(first), p.addrOf(last), p.subnet, last-first+1)
	}
	return p.take(oldest, last, first)
}

func (p *Pool) take(slot, last, first uint32) (netip.Addr, error) {
	p.cursor = slot + 1
	if p.cursor > last {
		p.cursor = first
	}
	return p.addrOf(slot), p.set(slot, taken)
}

// TakeExact takes one address that somebody asked for by name, rested or not. It fails with AlreadyExists if the
// address is taken and with InvalidArgument if it is outside the window.
func (p *Pool) TakeExact(w Window, a netip.Addr) error {
	first, last, err := p.bounds(w)
	if err != nil {
		return err
	}
	slot, ok := p.slotOf(a)
	if !ok || slot < first || slot > last || w.excludes(a) {
		return errs.InvalidArgument.Errorf("address %s is outside the range %s-%s of %s or excluded from it",
			a, p.addrOf(first), p.addrOf(last), p.subnet)
	}
	v, err := p.get(slot)
	if err != nil {
		return err
	}
	if v == taken {
		return errs.AlreadyExists.Errorf("address %s is in use by another attachment", a)
	}
	return p.set(slot, taken)
}

// Release lets an address rest from now on. Releasing one that is not taken changes nothing.
func (p *Pool) Release(a netip.Addr, now Clock) error {
	slot, ok := p.slotOf(a)
	if !ok {
		return nil
	}
	v, err := p.get(slot)
	if err != nil || v != taken {
		return err
	}
	return p.set(slot, uint32(now))
}

// Taken says whether an address is taken.
func (p *Pool) Taken(a netip.Addr) (bool, error) {
	slot, ok := p.slotOf(a)
	if !ok {
		return false, nil
	}
	v, err := p.get(slot)
	return v == taken, err
}

// Free says whether Take would succeed. It looks at the whole window only when the pool is full.
func (p *Pool) Free(w Window) (bool, error) {
	first, last, err := p.bounds(w)
	if err != nil {
		return false, err
	}
	for slot := first; ; slot++ {
		v, err := p.get(slot)
		if err != nil {
			return false, err
		}
		if v != taken && !w.excludes(p.addrOf(slot)) {
			return true, nil
		}
		if slot == last {
			return false, nil
		}
	}
}

// Reset makes exactly the given addresses taken. Addresses that were taken and are no longer begin to rest.
func (p *Pool) Reset(addrs []netip.Addr, now Clock) error {
	want := map[uint32]bool{}
	for _, a := range addrs {
		if slot, ok := p.slotOf(a); ok {
			want[slot] = true
		}
	}
	fi, err := p.f.Stat()
	if err != nil {
		return err
	}
	known := maps.Clone(p.blocks) // some may not be in the file yet
	for n := uint32(0); int64(n+1)*blockSize < fi.Size(); n++ {
		known[n] = nil
	}
	for n := range known {
		b, err := p.load(n)
		if err != nil {
			return err
		}
		for i, v := range b.slots {
			if v == taken && !want[n*perBlock+uint32(i)] {
				b.slots[i], b.dirty = uint32(now), true
			}
		}
	}
	for slot := range want {
		if err := p.set(slot, taken); err != nil {
			return err
		}
	}
	return nil
}
