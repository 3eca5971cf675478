// Package hostlocal keeps leases as upstream's host-local does, in its directory and format: one file per address
// below <dataDir>/<network>, which holds the container's id and the interface's name. So a node can change between
// the two in either direction with pods running. It owns that directory and a cache of it; who asks for an address and
// why is package dropin's business.
//
// The directory is the truth. Beside it, below the state directory, is a pool of package ipam for each subnet, so that
// finding a free address does not read the directory; somebody else's change shows when a file is there that the
// pool thinks free, or when the pool has nothing left, and makes the pool again. The pool goes with the boot, and
// with the first use after that go leases of an earlier boot.
package hostlocal

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/berth-project/berth/cni/internal/ipam"
	"github.com/berth-project/berth/proto/errs"
	"golang.org/x/sys/unix"
)

// Holder is who has a lease.
type Holder struct{ ContainerID, IfName string }

// text is a lease's content.
func (h Holder) text() string { return strings.TrimSpace(h.ContainerID) + "\r\n" + h.IfName }

// Dir is one directory of leases. The caller holds the state lock; the directory's own lock, which upstream's
// processes take, is held from Open to Close.
type Dir struct {
	path, cache string
	lock        *os.File
	pools       map[netip.Prefix]*ipam.Pool
	// Now is the clock of cooldowns, Cooldown in seconds.
	Now      ipam.Clock
	Cooldown int
}

// Open makes the directory if it is missing and locks it. The pools are kept below cache.
func Open(path, cache string) (*Dir, error) {
	for _, p := range []string{path, cache} {
		if err := os.MkdirAll(p, 0o755); err != nil {
			return nil, fmt.Errorf("leases: %w", err)
		}
	}
	f, err := os.OpenFile(filepath.Join(path, "lock"), os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("leases: %w", err)
	}
	for {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", f.Name(), err), f.Close())
	}
	return &Dir{path: path, cache: cache, lock: f, pools: map[netip.Prefix]*ipam.Pool{}}, nil
}

// Path is the directory.
func (d *Dir) Path() string { return d.path }

// Close writes the pools and lets go of the lock.
func (d *Dir) Close() error {
	var bad []error
	for _, p := range d.pools {
		bad = append(bad, p.Flush(), p.Close())
	}
	return errors.Join(append(bad, d.lock.Close())...)
}

func (d *Dir) file(a netip.Addr) string { return filepath.Join(d.path, a.String()) }

// Claim writes the lease; ok is false if somebody else has the address. The file appears with its content or not
// at all, so that a killed process leaves no lease without a holder.
func (d *Dir) Claim(a netip.Addr, h Holder) (ok bool, err error) {
	tmp := d.draft()
	if err := os.WriteFile(tmp, []byte(h.text()), 0o600); err != nil {
		return false, fmt.Errorf("lease %s: %w", a, err)
	}
	err = os.Link(tmp, d.file(a))
	if rerr := os.Remove(tmp); err == nil {
		err = rerr
	}
	if errors.Is(err, fs.ErrExist) {
		return false, nil
	}
	return err == nil, err
}

// draft is a lease that is being written; a process that is killed may leave it.
func (d *Dir) draft() string { return filepath.Join(d.path, ".claim") }

// Last writes down which address a range set gave out last, for upstream's round robin.
func (d *Dir) Last(set int, a netip.Addr) error {
	return os.WriteFile(filepath.Join(d.path, fmt.Sprintf("last_reserved_ip.%d", set)), []byte(a.String()), 0o600)
}

// Holds says whether the holder has the address.
func (d *Dir) Holds(a netip.Addr, h Holder) (bool, error) {
	b, err := os.ReadFile(d.file(a))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("lease %s: %w", a, err)
	}
	return h.match(string(b)), nil
}

// match also knows leases of upstream's first versions, which name the container alone.
func (h Holder) match(content string) bool {
	content = strings.TrimSpace(content)
	return content == h.text() || content == strings.TrimSpace(h.ContainerID)
}

// Release gives an address back if the holder has it; from now on it rests.
func (d *Dir) Release(a netip.Addr, h Holder) error {
	if err := os.Remove(d.draft()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("lease %s: %w", a, err)
	}
	mine, err := d.Holds(a, h)
	if err != nil || !mine {
		return err
	}
	if err := os.Remove(d.file(a)); err != nil {
		return fmt.Errorf("lease %s: %w", a, err)
	}
	return d.rest(a)
}

// rest tells whatever pools there are; which of them the address is of, only a configuration knows.
func (d *Dir) rest(a netip.Addr) error {
	entries, err := os.ReadDir(d.cache)
	if err != nil {
		return err
	}
	for _, e := range entries {
		subnet, err := ipam.ParseName(e.Name())
		if err != nil || !subnet.Contains(a) {
			continue
		}
		p, err := d.pool(subnet)
		if err != nil {
			return err
		}
		if err := p.Release(a, d.Now); err != nil && !errors.Is(err, ipam.ErrDamaged) {
			return err
		}
	}
	return nil
}

// Lease is one file.
type Lease struct {
	Addr   netip.Addr
	Holder Holder
}

// List reads the whole directory: for who has no record, for GC, and to make a pool again.
func (d *Dir) List() ([]Lease, error) {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return nil, fmt.Errorf("leases: %w", err)
	}
	var out []Lease
	for _, e := range entries {
		a, err := netip.ParseAddr(e.Name())
		if err != nil || !e.Type().IsRegular() {
			continue
		}
		b, err := os.ReadFile(d.file(a))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("lease %s: %w", a, err)
		}
		id, ifName, _ := strings.Cut(strings.TrimSpace(string(b)), "\r\n")
		out = append(out, Lease{a, Holder{id, ifName}})
	}
	return out, nil
}

// ReleaseAll gives back every address of the holder, by reading the directory.
func (d *Dir) ReleaseAll(h Holder) error {
	leases, err := d.List()
	if err != nil {
		return err
	}
	var bad []error
	for _, l := range leases {
		if l.Holder == h || l.Holder.IfName == "" && l.Holder.ContainerID == h.ContainerID {
			bad = append(bad, d.Release(l.Addr, h))
		}
	}
	return errors.Join(bad...)
}

// GC gives back every address whose holder keep does not know.
func (d *Dir) GC(keep func(Holder) bool) error {
	leases, err := d.List()
	if err != nil {
		return err
	}
	var bad []error
	for _, l := range leases {
		if !keep(l.Holder) {
			bad = append(bad, d.Release(l.Addr, l.Holder))
		}
	}
	return errors.Join(bad...)
}

// errFull is a range set without a free address.
func errFull(set RangeSet) error {
	return errs.ResourceExhausted.Errorf("no IP addresses available in range set %s", set)
}
