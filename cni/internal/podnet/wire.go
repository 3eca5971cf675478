package podnet

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"

	"github.com/berth-project/berth/cni/internal/netns"
	"github.com/berth-project/berth/cni/internal/nlwire"
	"github.com/berth-project/berth/cni/internal/rtnl"
	"github.com/berth-project/berth/cni/internal/spec"
	"github.com/berth-project/berth/cni/internal/state"
	"golang.org/x/sys/unix"
)

// wire makes the veth pair and configures both ends: two datagrams on the host, one in the pod.
func (n *Network) wire(rec *state.Record, ns *netns.NS) error {
	v6 := hasIPv6(rec)
	if err := n.enableForwarding(rec); err != nil {
		return err
	}
	// 1. Both ends in place. The pod's end is down, so nothing can be sent yet.
	err := n.route.Do([]nlwire.Op{rtnl.AddVeth(rtnl.Veth{
		Name: rec.Pod.Link, MAC: hostMAC(), Peer: rec.IfName, PeerMAC: rec.Pod.MAC, MTU: rec.MTU, PeerNS: ns.FD(),
	})})
	if errors.Is(err, unix.EEXIST) {
		return spec.Errorf(spec.CodeExists, "interface %s exists in %s: %w", rec.IfName, rec.Netns, err)
	}
	if err := errors.Join(err, addLink.Hit()); err != nil {
		return err
	}
	host, found, err := n.link(rec.Pod.Link)
	if err == nil && !found {
		err = fmt.Errorf("link %s vanished", rec.Pod.Link)
	}
	if err != nil {
		return err
	}
	// 2. The host's end.
	if err := hostSysctls(rec.Pod.Link, v6); err != nil {
		return err
	}
	localnet := n.openLocalnet(rec, host.Index)
	if err := n.route.Do(hostOps(rec, host.Index, ipv6Available(), localnet)); err != nil {
		return err
	}
	if err := addHostEnd.Hit(); err != nil {
		return err
	}
	// 3. The pod's end, last of all.
	return errors.Join(configurePod(rec, ns, host.Peer), addPodEnd.Hit())
}

// hostOps is what the host's end needs.
func hostOps(rec *state.Record, index int32, ipv6, localnet bool) []nlwire.Op {
	ops := []nlwire.Op{rtnl.HostEnd(index, rec.Alias(), ipv6, localnet)}
	for _, a := range rec.Addrs() {
		ops = append(ops, rtnl.AddNeigh(index, a, rec.Pod.MAC), rtnl.AddRoute(hostRoute(a, index)))
	}
	return ops
}

func hostRoute(a netip.Addr, index int32) rtnl.Route {
	return rtnl.Route{Dst: netip.PrefixFrom(a, a.BitLen()), Index: index, Protocol: rtnl.Protocol}
}

// podOps is what the pod's end needs. The loopback interface has index 1 in every namespace.
func podOps(rec *state.Record, index int32) []nlwire.Op {
	ops := []nlwire.Op{rtnl.SetUp(1), rtnl.SetUp(index)}
	for _, a := range rec.Addrs() {
		gw := Gateway4()
		if a.Is6() {
			gw = Gateway6()
		}
		ops = append(ops, rtnl.AddAddr(index, netip.PrefixFrom(a, a.BitLen())), rtnl.AddNeigh(index, gw, hostMAC()),
			rtnl.AddRoute(rtnl.Route{Dst: defaultOf(a), Gateway: gw, Index: index, Protocol: unix.RTPROT_BOOT, OnLink: gw.Is4()}))
	}
	return ops
}

func configurePod(rec *state.Record, ns *netns.NS, index int32) error {
	return ns.Do(func() error {
		if err := podSysctls(rec.IfName, hasIPv6(rec)); err != nil {
			return err
		}
		c, err := nlwire.Dial(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer c.Close() //nolint:errcheck // nothing buffered
		return c.Do(podOps(rec, index))
	})
}

func hasIPv6(rec *state.Record) bool {
	for _, a := range rec.Addrs() {
		if a.Is6() {
			return true
		}
	}
	return false
}

// link looks up a link by name in the host's namespace.
func (n *Network) link(name string) (l rtnl.Link, found bool, err error) {
	ms, err := n.route.Query("look up link "+name, rtnl.GetLink(name))
	if errors.Is(err, unix.ENODEV) {
		return l, false, nil
	}
	if err != nil {
		return l, false, err
	}
	l, found = rtnl.ParseLink(ms[0])
	return l, found, nil
}

// mtu is the configured one, else that of the device that leads out of the node, else 1500.
func (n *Network) mtu() (int, error) {
	if n.conf.MTU != 0 {
		return n.conf.MTU, nil
	}
	// Any global address would do: the kernel is asked for a way, nothing is sent (192.0.2.1 and 2001:db8::1).
	for _, dst := range []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, 1}), netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 15: 1})} {
		ms, err := n.route.Query("find the default route", rtnl.LookupRoute(dst))
		if err != nil || len(ms) == 0 {
			continue
		}
		r, ok := rtnl.ParseRoute(ms[0])
		if !ok || r.Index <= 1 {
			continue
		}
		if ms, err = n.route.Query("read the default route's device", rtnl.GetLinkIndex(r.Index)); err != nil {
			return 0, err
		}
		if l, ok := rtnl.ParseLink(ms[0]); ok && l.MTU >= 68 {
			return min(l.MTU, 65535), nil
		}
	}
	return 1500, nil
}

const procNet = "/proc/sys/net/"

// ipv6Available is false on a kernel that was started without IPv6.
func ipv6Available() bool {
	_, err := os.Stat(procNet + "ipv6/conf")
	return err == nil
}

// sysctl writes one value. Where IPv6 is off altogether its knobs are missing, and so is what they guard against.
func sysctl(key, value string) error {
	err := os.WriteFile(procNet+key, []byte(value), 0)
	if errors.Is(err, fs.ErrNotExist) && !ipv6Available() {
		return nil
	}
	return err
}

// hostSysctls sets what rtnetlink cannot: no router advertisement is believed, and without an IPv6 range there
// is no IPv6 at all.
func hostSysctls(link string, v6 bool) error {
	if !v6 {
		return sysctl("ipv6/conf/"+link+"/disable_ipv6", "1")
	}
	return sysctl("ipv6/conf/"+link+"/accept_ra", "0")
}

// podSysctls is called in the pod's namespace while its end is down. The link-local address then needs no
// duplicate detection either.
func podSysctls(ifName string, v6 bool) error {
	if !v6 {
		return sysctl("ipv6/conf/"+ifName+"/disable_ipv6", "1")
	}
	return errors.Join(sysctl("ipv6/conf/"+ifName+"/disable_ipv6", "0"),
		sysctl("ipv6/conf/"+ifName+"/accept_ra", "0"), sysctl("ipv6/conf/"+ifName+"/accept_dad", "0"))
}

// enableForwarding turns global forwarding on if it is off, and says so. A node that got its IPv6 default route
// from a router would lose it, so interfaces that believe routers are told to go on doing so.
func (n *Network) enableForwarding(rec *state.Record) error {
	for _, a := range rec.Addrs() {
		key := "ipv4/ip_forward"
		if a.Is6() {
			key = "ipv6/conf/all/forwarding"
		}
		v, err := os.ReadFile(procNet + key)
		if err != nil {
			return fmt.Errorf("network %s needs %s: %w", n.conf.Name, key, err)
		}
		if len(v) > 0 && v[0] != '0' {
			continue
		}
		if a.Is6() {
			keepRouterAdverts()
		}
		n.remark("turning on net/%s, which pods need", key)
		if err := sysctl(key, "1"); err != nil {
			return err
		}
	}
	return nil
}

// keepRouterAdverts sets accept_ra to 2 where it is 1: 1 means "unless forwarding".
func keepRouterAdverts() {
	entries, err := os.ReadDir(procNet + "ipv6/conf")
	if err != nil {
		return
	}
	for _, e := range entries {
		key := "ipv6/conf/" + e.Name() + "/accept_ra"
		if e.Name() == "all" || e.Name() == "default" {
			continue
		}
		if v, err := os.ReadFile(procNet + key); err == nil && len(v) > 0 && v[0] == '1' {
			_ = sysctl(key, "2") // best effort: the interface may just have gone
		}
	}
}
