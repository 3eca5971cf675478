package hostlocal

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/berth-project/berth/cni/internal/ipam"
	"github.com/berth-project/berth/proto/errs"
	"golang.org/x/sys/unix"
)

// Range is one range, complete: start, end and gateway are valid.
type Range struct {
	Subnet              netip.Prefix
	Start, End, Gateway netip.Addr
}

// Contains says whether an address is between start and end.
func (r Range) Contains(a netip.Addr) bool {
	return r.Subnet.Contains(a) && !a.Less(r.Start) && !r.End.Less(a)
}

// RangeSet are ranges of one family of which one address is taken.
type RangeSet []Range

// String writes the ranges as start-end.
func (s RangeSet) String() string {
	var out []string
	for _, r := range s {
		out = append(out, r.Start.String()+"-"+r.End.String())
	}
	return strings.Join(out, ",")
}

// Find is the range that contains an address.
func (s RangeSet) Find(a netip.Addr) (Range, bool) {
	for _, r := range s {
		if r.Contains(a) {
			return r, true
		}
	}
	return Range{}, false
}

// window is the range as a pool has it. A pool has 2^24 addresses; of a larger IPv6 range the ones behind its start
// are used.
func (r Range) window() (netip.Prefix, ipam.Window) {
	w := ipam.Window{Start: r.Start, End: r.End, Exclude: []netip.Prefix{netip.PrefixFrom(r.Gateway, r.Gateway.BitLen())}}
	subnet := r.Subnet
	if bits := r.Start.BitLen() - 24; subnet.Bits() < bits {
		subnet = netip.PrefixFrom(r.Start, bits).Masked()
		if !subnet.Contains(w.End) {
			w.End = netip.Addr{}
		}
	}
	return subnet, w
}

// Pick finds an address that the pool thinks free, and takes it there; [Dir.Claim] makes it sure. It fails with
// ResourceExhausted when there is none, after it has looked at the directory.
func (d *Dir) Pick(set RangeSet) (netip.Addr, Range, error) {
	a, r, err := d.pick(set)
	if !errors.Is(err, errs.ResourceExhausted) {
		return a, r, err
	}
	for _, r := range set { // somebody else may have released some
		subnet, _ := r.window()
		p, err := d.pool(subnet)
		if err != nil {
			return a, r, err
		}
		if err := d.fill(p); err != nil {
			return a, r, err
		}
	}
	return d.pick(set)
}

func (d *Dir) pick(set RangeSet) (netip.Addr, Range, error) {
	for _, r := range set {
		subnet, w := r.window()
		p, err := d.pool(subnet)
		if err != nil {
			return netip.Addr{}, r, err
		}
		a, err := p.Take(w, d.Now, d.Cooldown)
		if errors.Is(err, ipam.ErrDamaged) {
			if p, err = d.remake(subnet); err == nil {
				a, err = p.Take(w, d.Now, d.Cooldown)
			}
		}
		if errors.Is(err, errs.ResourceExhausted) {
			continue
		}
		return a, r, err
	}
	return netip.Addr{}, Range{}, errFull(set)
}

// Mark takes an address in its pool because somebody asked for it by name.
func (d *Dir) Mark(r Range, a netip.Addr) error {
	subnet, w := r.window()
	if !subnet.Contains(a) {
		return nil // behind the pool's end: the directory alone knows
	}
	p, err := d.pool(subnet)
	if err != nil {
		return err
	}
	err = p.TakeExact(ipam.Window{Start: w.Start, End: w.End}, a)
	if errors.Is(err, errs.AlreadyExists) {
		return nil // the pool may be wrong; Claim is not
	}
	return err
}

// Free says whether a range set has an address left.
func (d *Dir) Free(set RangeSet) (bool, error) {
	for range 2 {
		for _, r := range set {
			subnet, w := r.window()
			p, err := d.pool(subnet)
			if err != nil {
				return false, err
			}
			if ok, err := p.Free(w); err != nil || ok {
				return ok, err
			}
			if err := d.fill(p); err != nil {
				return false, err
			}
		}
	}
	return false, nil
}

// pool opens a subnet's pool and fills a new one from the directory.
func (d *Dir) pool(subnet netip.Prefix) (*ipam.Pool, error) {
	if p := d.pools[subnet]; p != nil {
		return p, nil
	}
	_, serr := os.Stat(filepath.Join(d.cache, ipam.Name(subnet)))
	p, err := ipam.Open(d.cache, subnet)
	if errors.Is(err, ipam.ErrDamaged) {
		return d.remake(subnet)
	}
	if err != nil {
		return nil, err
	}
	d.pools[subnet] = p
	if serr == nil {
		return p, nil
	}
	if err := d.forget(); err != nil {
		return nil, err
	}
	p.Resume(d.lastReserved(subnet))
	return p, errors.Join(d.fill(p), p.Flush())
}

// lastReserved is where upstream's round robin was in a subnet, if it was there.
func (d *Dir) lastReserved(subnet netip.Prefix) netip.Addr {
	files, _ := filepath.Glob(filepath.Join(d.path, "last_reserved_ip.*"))
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		if a, err := netip.ParseAddr(strings.TrimSpace(string(b))); err == nil && subnet.Contains(a) {
			return a
		}
	}
	return netip.Addr{}
}

func (d *Dir) remake(subnet netip.Prefix) (*ipam.Pool, error) {
	if p := d.pools[subnet]; p != nil {
		_ = p.Close() // it is thrown away
		delete(d.pools, subnet)
	}
	if err := os.Remove(filepath.Join(d.cache, ipam.Name(subnet))); err != nil {
		return nil, err
	}
	return d.pool(subnet)
}

// fill makes a pool agree with the directory.
func (d *Dir) fill(p *ipam.Pool) error {
	leases, err := d.List()
	if err != nil {
		return err
	}
	var taken []netip.Addr
	for _, l := range leases {
		taken = append(taken, l.Addr)
	}
	return p.Reset(taken, d.Now)
}

// forget removes the leases of an earlier boot, of which nothing can be alive. A file is one of those if it is older
// than the boot and no interface in any namespace has its address: the second, because a machine without a clock of
// its own may have thought it was 1970 when it wrote the file.
func (d *Dir) forget() error {
	leases, err := d.List()
	if err != nil {
		return err
	}
	var old []Lease
	boot := bootTime()
	for _, l := range leases {
		fi, err := os.Stat(d.file(l.Addr))
		if err == nil && fi.ModTime().Before(boot) {
			old = append(old, l)
		}
	}
	if len(old) == 0 {
		return nil
	}
	live, err := liveAddrs()
	if err != nil {
		return err
	}
	for _, l := range old {
		if live[l.Addr] {
			continue
		}
		if err := os.Remove(d.file(l.Addr)); err != nil {
			return fmt.Errorf("lease %s of an earlier boot: %w", l.Addr, err)
		}
	}
	return nil
}

func bootTime() time.Time {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) // cannot fail with this clock
	return time.Now().Add(-time.Duration(ts.Nano()))
}
