package datapath

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"github.com/berth-project/berth/cni/internal/fabric"
	"github.com/berth-project/berth/cni/internal/nft"
	"github.com/berth-project/berth/cni/internal/nlwire"
	"github.com/berth-project/berth/cni/internal/overlay"
	"golang.org/x/sys/unix"
)

// Kernel carries plans out in the network namespace in which it was opened. It is used by one goroutine at a time.
type Kernel struct {
	route *nlwire.Conn
	nft   *nft.Conn
	// ioctl is a socket that takes ioctls on links.
	ioctl int
	ipv6  bool
	// guard is what the table holds, unless broken says that it may be something else.
	guard  guard
	tabled bool
	broken bool
	// ours are the indexes of our devices, for the watcher.
	ours    atomic.Pointer[map[int32]bool]
	tunnels map[string]int32
}

// Open opens the sockets, in the calling thread's namespace.
func Open() (*Kernel, error) {
	route, err := nlwire.Dial(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	n, err := nft.Dial()
	if err != nil {
		return nil, errors.Join(err, route.Close())
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, errors.Join(err, route.Close(), n.Close())
	}
	_, err = os.Stat("/proc/thread-self/net/if_inet6")
	return &Kernel{route: route, nft: n, ioctl: fd, ipv6: err == nil, broken: true}, nil
}

// Close closes the sockets and changes nothing.
func (k *Kernel) Close() error {
	return errors.Join(k.route.Close(), k.nft.Close(), unix.Close(k.ioctl))
}

// Links lists the node's links with their addresses, without VXLAN devices.
func (k *Kernel) Links() ([]overlay.Link, error) {
	s, err := readLinks(k.route)
	if err != nil {
		return nil, err
	}
	return s.links, nil
}

// TableBroken says that somebody else changed the table: the next [Kernel.Apply] writes it anew.
func (k *Kernel) TableBroken() { k.broken = true }

// Apply makes the kernel hold the plan and returns what it had to do for that, a line each. Without its devices it does
// nothing more; after that it goes on when something fails, and the error joins all of it. Calling it again is right.
func (k *Kernel) Apply(plan *overlay.Plan, tunnel fabric.Tunnel) (changes []string, err error) {
	s, err := read(k.route)
	if err != nil {
		return nil, err
	}
	if err := beforeDevices.Hit(); err != nil {
		return nil, err
	}
	// 1. Devices: what is new is made, and then, as it has an index, configured.
	s, changes, errs := k.devices(plan, s)
	if s == nil {
		return changes, errors.Join(errs...)
	}
	k.remember(s)
	done, err := k.applyChecksums(plan)
	changes, errs = append(changes, done...), append(errs, err)
	// 2. Who may send to them. Before anything leads to the new ones, after everything has left the old.
	done, err = k.applyGuard(plan, tunnel)
	changes, errs = append(changes, done...), append(errs, err, afterGuard.Hit())
	// 3. Everything on them and to them.
	phases, err := diff(plan, s)
	errs = append(errs, err)
	for _, ph := range phases {
		changes = append(changes, names(ph.ops)...)
		errs = append(errs, k.batch(ph.ops), afterPhase(ph.name).Hit())
	}
	return changes, errors.Join(errs...)
}

// devices makes and changes devices until they are right, which takes two rounds, and returns the state after it.
func (k *Kernel) devices(plan *overlay.Plan, s *state) (_ *state, changes []string, errs []error) {
	for range 3 {
		ph, err := diffDevices(plan, s, k.ipv6)
		if err != nil {
			return nil, changes, append(errs, err)
		}
		if len(ph.ops) == 0 {
			return s, changes, append(errs, afterDevices.Hit())
		}
		changes = append(changes, names(ph.ops)...)
		if err := k.route.Do(ph.ops); err != nil {
			return nil, changes, append(errs, err)
		}
		if err := afterDevices.Hit(); err != nil {
			return nil, changes, append(errs, err)
		}
		if s, err = read(k.route); err != nil {
			return nil, changes, append(errs, err)
		}
	}
	return nil, changes, append(errs, errors.New("the VXLAN devices do not become what they should be"))
}

// batch sends ops, in two halves while a test looks at what a kill between them leaves.
func (k *Kernel) batch(ops []nlwire.Op) error {
	half := len(ops) / 2
	if half > 0 {
		if err := errors.Join(k.route.Batch(ops[:half]), betweenHalfBatch.Hit()); err != nil {
			return err
		}
	}
	return k.route.Batch(ops[half:])
}

func (k *Kernel) applyGuard(plan *overlay.Plan, tunnel fabric.Tunnel) ([]string, error) {
	want, needed := guardOf(tunnel, plan.VTEPs, len(plan.Devices))
	switch {
	case !needed && !k.tabled && !k.broken:
		return nil, nil
	case !needed:
		t := nft.Table{Name: TableName}
		if err := k.nft.Commit([]nlwire.Op{t.Add(), t.Delete()}); err != nil {
			return nil, err
		}
		k.tabled, k.broken = false, false
		return nil, nil
	case k.tabled && !k.broken && k.guard.equal(want):
		return nil, nil
	}
	ops, what := want.whole(), "write"
	if k.tabled && !k.broken {
		ops, what = want.from(k.guard), "change"
	}
	if err := k.nft.Commit(ops); err != nil {
		k.broken = true
		return nil, err
	}
	k.guard, k.tabled, k.broken = want, true, false
	return []string{fmt.Sprintf("%s table %s: %d VTEPs", what, TableName, len(want.vteps))}, nil
}

func names(ops []nlwire.Op) []string {
	all := make([]string, len(ops))
	for i := range ops {
		all[i] = ops[i].What
	}
	return all
}
