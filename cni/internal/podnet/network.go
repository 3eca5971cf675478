// Package podnet attaches pods to a network of routed veth pairs and takes them off again: the stories of ADD, DEL,
// CHECK, GC and STATUS, and the repair of what a killed process left. It decides; the packages it stands on
// (rtnl, nft, ruleset, ipam, state, linkdel) do one thing each and know nothing of each other's reasons. It must
// not read the environment or write to stdout: package plugin is the edge.
//
// Invariants, held whenever the state lock is free and no change was interrupted:
//
//   - an address is taken in its pool exactly when one record holds it;
//   - the table inet berth-node holds exactly what [ruleset.Compile] makes of the records;
//   - a record that is ready has a host end of its name, unless somebody deleted it or its namespace is gone;
//   - a link whose name begins with "bth" and that has no elements in the table is deaf and mute.
package podnet

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/berth-project/berth/cni/internal/hostlocal"
	"github.com/berth-project/berth/cni/internal/ipam"
	"github.com/berth-project/berth/cni/internal/linkdel"
	"github.com/berth-project/berth/cni/internal/netconf"
	"github.com/berth-project/berth/cni/internal/nft"
	"github.com/berth-project/berth/cni/internal/nlwire"
	"github.com/berth-project/berth/cni/internal/ruleset"
	"github.com/berth-project/berth/cni/internal/state"
	"golang.org/x/sys/unix"
)

// lockPatience is how long a verb waits for the others; a change takes about a millisecond.
const lockPatience = 10 * time.Second

// Gateway4 and Gateway6 are what pods route through. No interface has them: each pod has a permanent neighbour
// entry that leads to its host end.
func Gateway4() netip.Addr { return netip.AddrFrom4([4]byte{169, 254, 1, 1}) }

// Gateway6 is the IPv6 one.
func Gateway6() netip.Addr { return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 15: 1}) }

// hostMAC is every host end's hardware address: the links are point to point, so it need not be unique.
func hostMAC() [6]byte { return [6]byte{0xee, 0xee, 0xee, 0xee, 0xee, 0xee} }

// Attachment names one interface of one container.
type Attachment struct {
	ContainerID, IfName string
	// Netns is a path; DEL may have none.
	Netns string
}

// Network is one network configuration, ready to be worked on. Open it, use it for one verb, close it.
type Network struct {
	conf  *netconf.Config
	store *state.Store
	route *nlwire.Conn
	nft   *nft.Conn
	pools map[netip.Prefix]*ipam.Pool
	// leases are the directories of host-local's format that were opened.
	leases map[string]*hostlocal.Dir
	log    io.Writer
	way    linkdel.Way
	// held says that a child, or a timer, holds the nf_tables socket, see Close.
	held bool
}

// destroyTime is how long after a transaction that deleted something the kernel may still be freeing it, in
// milliseconds: one grace period, 8 ms here, with a margin.
const destroyTime = 40

// Options are what of a verb is not its network's.
type Options struct {
	// Log takes remarks for the node's administrator, a line each.
	Log io.Writer
	// Turn is given by a process that goes on after the verb.
	Turn *state.Turn
}

// Open takes the state lock and repairs what a killed process or another boot left behind.
func Open(conf *netconf.Config, o Options) (*Network, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, err
	}
	n := &Network{conf: conf, log: o.Log, pools: map[netip.Prefix]*ipam.Pool{}, leases: map[string]*hostlocal.Dir{}}
	if n.store, err = state.Open(conf.StateDir, strings.TrimSpace(string(boot)), lockPatience, o.Turn); err != nil {
		return nil, err
	}
	if o.Turn != nil {
		n.way = linkdel.Thread
	}
	if n.route, err = nlwire.Dial(unix.NETLINK_ROUTE); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	if n.nft, err = nft.Dial(); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	if !n.store.Fresh() {
		if err := n.repair(); err != nil {
			return nil, errors.Join(fmt.Errorf("repair: %w", err), n.Close())
		}
	}
	return n, nil
}

// Close lets go of everything. Closing an nf_tables socket waits while the kernel still frees what anybody deleted
// shortly before, so that is then left to a child.
func (n *Network) Close() error {
	var errs []error
	for _, p := range n.pools {
		errs = append(errs, p.Close())
	}
	for _, d := range n.leases {
		errs = append(errs, d.Close())
	}
	if n.route != nil {
		errs = append(errs, n.route.Close())
	}
	if n.nft != nil {
		if age := uptime() - n.store.LastDeleted(); !n.held && age >= 0 && age < destroyTime {
			linkdel.Hold(n.way, n.nft.FD())
		}
		errs = append(errs, n.nft.Close())
	}
	return errors.Join(append(errs, n.store.Close())...)
}

func (n *Network) remark(format string, args ...any) {
	_, _ = fmt.Fprintf(n.log, "berth-cni: "+format+"\n", args...)
}

// uptime is in milliseconds, suspended time included.
func uptime() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) // cannot fail with this clock
	return ts.Nano() / 1e6
}

func now() ipam.Clock { return ipam.Clock(uptime()/1000 + 1) }

// pool opens a pool once. A damaged file is set aside and made again from the records.
func (n *Network) pool(subnet netip.Prefix) (*ipam.Pool, error) {
	if p := n.pools[subnet]; p != nil {
		return p, nil
	}
	p, err := ipam.Open(n.store.Pools(), subnet)
	if errors.Is(err, ipam.ErrDamaged) {
		if p, err = n.remakePool(subnet); err != nil {
			return nil, err
		}
	}
	if err != nil {
		return nil, err
	}
	n.pools[subnet] = p
	return p, nil
}

func (n *Network) remakePool(subnet netip.Prefix) (*ipam.Pool, error) {
	n.remark("pool %s was damaged; making it again from the records", subnet)
	if p := n.pools[subnet]; p != nil {
		_ = p.Close()
		delete(n.pools, subnet)
	}
	if err := n.store.Quarantine(filepath.Join(n.store.Pools(), ipam.Name(subnet))); err != nil {
		return nil, err
	}
	p, err := ipam.Open(n.store.Pools(), subnet)
	if err != nil {
		return nil, err
	}
	addrs, err := n.addrsInUse()
	if err != nil {
		return nil, err
	}
	return p, errors.Join(p.Reset(addrs, now()), p.Flush())
}

func window(r netconf.Range) ipam.Window {
	w := ipam.Window{Start: r.RangeStart, End: r.RangeEnd, Exclude: r.Exclude}
	if r.Gateway.IsValid() {
		w.Exclude = append(w.Exclude[:len(w.Exclude):len(w.Exclude)], netip.PrefixFrom(r.Gateway, r.Gateway.BitLen()))
	}
	return w
}

// rules carries out a small transaction, and replaces the whole table if that is refused: because the table is
// missing, flushed, of another schema, or not what the records say.
func (n *Network) rules(small []nlwire.Op) error {
	if small != nil {
		if err := n.nft.Commit(small); err == nil {
			return nil
		}
	}
	d, err := n.desired()
	if err != nil {
		return err
	}
	return n.nft.Commit(ruleset.Compile(d))
}

// desired is what the table must hold, as the records say.
func (n *Network) desired() (ruleset.Desired, error) {
	var d ruleset.Desired
	records, _, err := n.store.List()
	if err != nil {
		return d, err
	}
	for _, r := range records {
		if r.IPTables == nil {
			d.Pods = append(d.Pods, r.Pod)
		}
	}
	nets, err := n.store.Networks()
	if err != nil {
		return d, err
	}
	for _, nw := range nets {
		d.NoMasquerade = append(append(d.NoMasquerade, nw.All()...), nw.Exclude...)
		d.Bridged = append(d.Bridged, nw.Subnets...)
	}
	return d, nil
}
