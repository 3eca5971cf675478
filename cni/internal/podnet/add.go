package podnet

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/berth-project/berth/cni/internal/ipam"
	"github.com/berth-project/berth/cni/internal/iptables"
	"github.com/berth-project/berth/cni/internal/netconf"
	"github.com/berth-project/berth/cni/internal/netns"
	"github.com/berth-project/berth/cni/internal/rtnl"
	"github.com/berth-project/berth/cni/internal/ruleset"
	"github.com/berth-project/berth/cni/internal/spec"
	"github.com/berth-project/berth/cni/internal/state"
	"github.com/berth-project/berth/internal/failpoint"
	"github.com/berth-project/berth/proto/errs"
	"golang.org/x/sys/unix"
)

// The places where a test may end ADD.
var (
	addBegun    = failpoint.New("cni.add.begun")
	addTaken    = failpoint.New("cni.add.taken")
	addSaved    = failpoint.New("cni.add.saved")
	addRules    = failpoint.New("cni.add.rules")
	addLink     = failpoint.New("cni.add.link")
	addHostEnd  = failpoint.New("cni.add.host_end")
	addPodEnd   = failpoint.New("cni.add.pod_end")
	addCommit   = failpoint.New("cni.add.commit")
	addFinished = failpoint.New("cni.add.finished")
)

// Add attaches a container: it fails with AlreadyExists if that was done before, and leaves nothing behind when it
// fails.
func (n *Network) Add(a Attachment, req *netconf.Request) (*spec.Result, error) {
	// 1. Look before anything is touched.
	ns, err := OpenForeign(a.Netns)
	if err != nil {
		return nil, err
	}
	defer ns.Close() //nolint:errcheck // read only
	link := state.LinkName(n.conf.Name, a.ContainerID, a.IfName)
	if err := n.refuseDuplicate(link, a); err != nil {
		return nil, err
	}
	mtu, err := n.mtu()
	if err != nil {
		return nil, err
	}
	// 2. From here on a death is repaired by the next verb.
	if err := errors.Join(n.store.Begin(), addBegun.Hit()); err != nil {
		return nil, err
	}
	rec := &state.Record{
		Network: n.conf.Name, ContainerID: a.ContainerID, IfName: a.IfName, Netns: a.Netns, MTU: mtu,
		Namespace: req.Namespace, PodName: req.Pod, UID: req.UID, CgroupPath: req.CgroupPath,
		Created: time.Now().Unix(),
		Pod:     ruleset.Pod{Link: link, MAC: req.MAC},
	}
	err = n.attach(rec, req, ns)
	if err != nil {
		err = errors.Join(err, n.detach(rec))
	}
	// 3. All is consistent again, attached or not.
	if err := errors.Join(err, n.store.End(), addFinished.Hit()); err != nil {
		return nil, err
	}
	return n.result(rec), nil
}

// attach makes the attachment, in the order that keeps the pod closed until all of it stands.
func (n *Network) attach(rec *state.Record, req *netconf.Request, ns *netns.NS) error {
	// 1. Addresses.
	if err := n.takeAddrs(rec, req); err != nil {
		return err
	}
	if rec.Pod.MAC == [6]byte{} {
		if _, err := unix.Getrandom(rec.Pod.MAC[1:], 0); err != nil {
			return err
		}
		rec.Pod.MAC[0] = 0x02
	}
	rec.Pod.Ports = ports(req.Ports)
	if err := errors.Join(n.flush(), addTaken.Hit()); err != nil {
		return err
	}
	// 2. The record, so that DEL can undo the rest.
	if rec.Bandwidth = req.Bandwidth; rec.Bandwidth != nil && rec.Bandwidth.EgressRate > 0 {
		rec.Links = []string{ifbName(rec)}
	}
	if err := n.refuseOverlap(); err != nil {
		return err
	}
	if n.legacy() {
		if err := iptables.Installed(); err != nil {
			return err
		}
		rec.IPTables = legacyRules(rec.Pod, nil) // its names, by which it is removed; the rules follow
	}
	changed, err := n.store.SaveNetwork(state.Network{Name: n.conf.Name, Pools: n.conf.Pools()[len(n.conf.RuntimePools()):], Runtime: n.conf.RuntimePools(), Exclude: n.conf.MasqueradeExclude, Legacy: n.legacy()})
	if err != nil {
		return err
	}
	if err := errors.Join(n.store.Save(rec), addSaved.Hit()); err != nil {
		return err
	}
	// 3. Anti-spoofing, masquerade and host ports, before there is a link that could send.
	if err := n.addRules(rec, changed); err != nil {
		return err
	}
	if err := errors.Join(n.flushFlows(rec, true), addRules.Hit()); err != nil {
		return err
	}
	// 4. The link, its host end, its pod end.
	if err := n.wire(rec, ns); err != nil {
		return err
	}
	if err := n.limit(rec); err != nil {
		return err
	}
	return errors.Join(n.store.Commit(rec), addCommit.Hit())
}

// addRules puts the rules of an attachment of type berth where the network has them. anew says that the table has to be
// made as a whole.
func (n *Network) addRules(rec *state.Record, anew bool) error {
	if n.legacy() {
		if err := n.conflict(rec); err != nil {
			return err
		}
		kept, err := n.kept()
		if err == nil {
			err = iptables.Ensure(legacyRules(rec.Pod, kept))
		}
		if err == nil && anew {
			err = n.mendLegacy(true)
		}
		return err
	}
	if err := n.checkPorts(rec); err != nil {
		return err
	}
	if anew {
		return n.rules(nil)
	}
	return n.rules(ruleset.AddPod(rec.Pod))
}

// refuseOverlap fails if another network has a subnet that overlaps one of ours without being the same: equal ones
// share a pool, others would give an address out twice. Nor may it have pods of the other backend.
func (n *Network) refuseOverlap() error {
	nets, err := n.store.Networks()
	if err != nil {
		return err
	}
	if err := n.refuseMixture(nets); err != nil {
		return err
	}
	for _, nw := range nets {
		for _, theirs := range nw.All() {
			for _, ours := range n.conf.Pools() {
				if nw.Name != n.conf.Name && ours != theirs && ours.Overlaps(theirs) {
					return errs.InvalidArgument.Errorf("subnet %s of network %s overlaps subnet %s of network %s on this node",
						ours, n.conf.Name, theirs, nw.Name)
				}
			}
		}
	}
	return nil
}

func ports(in []netconf.Port) []ruleset.HostPort {
	var out []ruleset.HostPort
	for _, p := range in {
		out = append(out, ruleset.HostPort{HostIP: p.HostIP, Proto: p.Proto, Host: p.Host, Target: p.Target})
	}
	return out
}

// OpenForeign opens the container's namespace and refuses our own.
func OpenForeign(path string) (*netns.NS, error) {
	ns, err := netns.Open(path)
	if err != nil {
		return nil, spec.Errorf(spec.CodeNetNS, "CNI_NETNS %q: %w", path, err)
	}
	here, err := netns.Current()
	if err != nil {
		return nil, errors.Join(err, ns.Close())
	}
	defer here.Close() //nolint:errcheck // read only
	if here.Is(ns) {
		_ = ns.Close()
		return nil, spec.Errorf(spec.CodeNetNS, "CNI_NETNS %q is the plugin's own network namespace", path)
	}
	return ns, nil
}

// refuseDuplicate fails if the attachment exists. A record without a link is what a vanished namespace leaves
// when its DEL was lost: it is cleaned up and no obstacle.
func (n *Network) refuseDuplicate(link string, a Attachment) error {
	rec, err := n.store.Load(link)
	if errors.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if !rec.Is(n.conf.Name, a.ContainerID, a.IfName) {
		return errs.AlreadyExists.Errorf("link name %s is taken by container %s, interface %s of network %s", link, rec.ContainerID, rec.IfName, rec.Network)
	}
	_, found, err := n.link(link)
	if err != nil {
		return err
	}
	if found {
		return errs.AlreadyExists.Errorf("container %s has interface %s of network %s already (link %s, addresses %v)",
			a.ContainerID, a.IfName, n.conf.Name, link, rec.Addrs())
	}
	return n.remove(rec)
}

// takeAddrs takes one address for each family that the network has ranges of.
func (n *Network) takeAddrs(rec *state.Record, req *netconf.Request) error {
	if slices.Contains(n.conf.ReservedNamespaces, req.Namespace) {
		return errs.Unavailable.Errorf("namespace %s has a pool of its own, and this node has no block of it yet", req.Namespace)
	}
	for _, v6 := range []bool{false, true} {
		rs := n.conf.RangesFor(req.Namespace, v6)
		if len(rs) == 0 {
			continue
		}
		a, err := n.takeAddr(rs, wanted(req, v6))
		if errors.Is(err, errs.ResourceExhausted) {
			// The dead still have addresses, and so had leases of upstream's that have been given back since.
			if dead := n.collectDead(); dead > 0 || len(n.conf.ImportHostLocal) > 0 {
				if err = n.resetPools(rec.Pod.Addrs...); err == nil {
					a, err = n.takeAddr(rs, wanted(req, v6))
				}
			}
		}
		if err != nil {
			return fmt.Errorf("network %s: %w", n.conf.Name, err)
		}
		rec.Pod.Addrs = append(rec.Pod.Addrs, a)
	}
	if len(rec.Pod.Addrs) == 0 {
		return errs.Unavailable.Errorf("network %s: all its ranges are those of other namespaces than %q", n.conf.Name, req.Namespace)
	}
	rec.Pod.Masquerade = n.conf.Masquerade(rec.Pod.Addrs...)
	return nil
}

func wanted(req *netconf.Request, v6 bool) netip.Addr {
	for _, a := range req.IPs {
		if a.Is6() == v6 {
			return a
		}
	}
	return netip.Addr{}
}

func (n *Network) takeAddr(rs []netconf.Range, want netip.Addr) (netip.Addr, error) {
	var failed error
	if inside := func(r netconf.Range) bool { return r.Subnet.Contains(want) }; want.IsValid() && !slices.ContainsFunc(rs, inside) {
		return want, errs.InvalidArgument.Errorf("address %s is in a range of other namespaces", want)
	}
	for _, r := range rs {
		if want.IsValid() && !r.Subnet.Contains(want) {
			continue
		}
		a, err := n.takeFrom(r, want)
		if errors.Is(err, ipam.ErrDamaged) {
			if _, err = n.remakePool(r.Subnet); err == nil {
				a, err = n.takeFrom(r, want)
			}
		}
		if err == nil {
			return a, nil
		}
		failed = errors.Join(failed, err)
	}
	return netip.Addr{}, failed
}

func (n *Network) takeFrom(r netconf.Range, want netip.Addr) (netip.Addr, error) {
	p, err := n.pool(r.Subnet)
	if err != nil {
		return netip.Addr{}, err
	}
	if want.IsValid() {
		if n.imported(want) {
			return want, errs.AlreadyExists.Errorf("address %s is in use: %v has a lease of it", want, n.conf.ImportHostLocal)
		}
		return want, p.TakeExact(window(r), want)
	}
	for {
		a, err := p.Take(window(r), now(), n.conf.Cooldown())
		if err != nil || !n.imported(a) {
			return a, err
		}
	}
}

// imported says whether a pod that upstream's plugins attached still has the address.
func (n *Network) imported(a netip.Addr) bool {
	for _, dir := range n.conf.ImportHostLocal {
		if _, err := os.Lstat(filepath.Join(dir, a.String())); err == nil {
			return true
		}
	}
	return false
}

func (n *Network) flush() error {
	var bad []error
	for _, p := range n.pools {
		bad = append(bad, p.Flush())
	}
	return errors.Join(bad...)
}

func (n *Network) result(rec *state.Record) *spec.Result {
	r := &spec.Result{DNS: n.conf.ResultDNS(), Interfaces: []spec.Interface{
		{Name: rec.Pod.Link, MAC: rtnl.MAC(hostMAC()).String(), MTU: rec.MTU},
		{Name: rec.IfName, MAC: rtnl.MAC(rec.Pod.MAC).String(), MTU: rec.MTU, Sandbox: rec.Netns},
	}}
	for _, a := range rec.Addrs() {
		gw := Gateway4()
		if a.Is6() {
			gw = Gateway6()
		}
		r.IPs = append(r.IPs, spec.IP{Address: netip.PrefixFrom(a, a.BitLen()), Gateway: gw, Interface: 1})
		r.Routes = append(r.Routes, spec.Route{Dst: defaultOf(a), GW: gw})
	}
	return r
}

func defaultOf(a netip.Addr) netip.Prefix {
	if a.Is4() {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}
