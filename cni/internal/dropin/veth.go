package dropin

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strings"

	"github.com/berth-project/berth/cni/internal/netns"
	"github.com/berth-project/berth/cni/internal/nlwire"
	"github.com/berth-project/berth/cni/internal/rtnl"
	"github.com/berth-project/berth/cni/internal/spec"
	"github.com/berth-project/berth/cni/internal/state"
	"golang.org/x/sys/unix"
)

// vethName is the host end's name, derived from the attachment as type berth's is.
func (c *Call) vethName() string {
	return "veth" + strings.TrimPrefix(state.LinkName(c.conf.Name, c.ContainerID, c.IfName), "bth")
}

// macOf derives an address from a name: locally administered, unicast, the same every time.
func macOf(parts ...string) rtnl.MAC {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	mac := rtnl.MAC(sum[:6])
	mac[0] = mac[0]&^1 | 2
	return mac
}

// veth is what makeVeth makes.
type veth struct {
	mac    rtnl.MAC // of the container's end; zero for any
	mtu    int      // 0 for the kernel's
	master int32    // the bridge of the host's end; 0 for none
}

// makeVeth makes both ends in place and returns them, the container's end down. The record tells of the host's end
// before it is there.
func (c *Call) makeVeth(rec *state.Record, ns *netns.NS, v veth) (host, inside rtnl.Link, err error) {
	name := c.vethName()
	if v.mac == (rtnl.MAC{}) {
		v.mac = macOf("container", rec.Name())
	}
	rec.Pod.Link, rec.Pod.MAC, rec.Links = name, v.mac, append(rec.Links, name)
	if err := c.net.Save(rec); err != nil {
		return host, inside, err
	}
	err = c.net.Route().Do([]nlwire.Op{rtnl.AddVeth(rtnl.Veth{
		Name: name, MAC: macOf("host", rec.Name()), Peer: c.IfName, PeerMAC: v.mac, MTU: v.mtu, PeerNS: ns.FD(), Master: v.master,
	})})
	if errors.Is(err, unix.EEXIST) {
		return host, inside, spec.Errorf(spec.CodeExists, "interface %s exists in %s: %w", c.IfName, c.Netns, err)
	}
	if err != nil {
		return host, inside, err
	}
	host, found, err := c.net.Link(name)
	if err == nil && !found {
		err = fmt.Errorf("link %s vanished", name)
	}
	inside = rtnl.Link{Name: c.IfName, Index: host.Peer, MAC: v.mac, MTU: host.MTU}
	return host, inside, err
}

// ready removes a link of ours that a lost DEL left under the attachment's name.
func (c *Call) ready() error {
	l, found, err := c.net.Link(c.vethName())
	if err != nil || !found {
		return err
	}
	return spec.Errorf(spec.CodeExists, "host link %s of container %s exists (%s): delete the attachment first", l.Name, c.ContainerID, l.Alias)
}

// inNetns runs fn in the container's namespace with a socket there.
func inNetns(ns *netns.NS, fn func(*nlwire.Conn) error) error {
	return ns.Do(func() error {
		conn, err := nlwire.Dial(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer conn.Close() //nolint:errcheck // nothing buffered
		return fn(conn)
	})
}

// sysctls writes values below /proc/sys/net of the calling thread's namespace. Knobs of IPv6 are missing where the
// kernel has none.
func sysctls(values ...[2]string) error {
	for _, kv := range values {
		err := os.WriteFile("/proc/sys/net/"+kv[0], []byte(kv[1]), 0)
		if err != nil && !(errors.Is(err, fs.ErrNotExist) && strings.HasPrefix(kv[0], "ipv6/")) {
			return err
		}
	}
	return nil
}

// configure gives the container's end the result's addresses and routes and brings it up.
func configure(conn *nlwire.Conn, index int32, r *spec.Result, dad bool) error {
	ops := []nlwire.Op{rtnl.SetUp(index)}
	for _, ip := range r.IPs {
		if dad {
			ops = append(ops, rtnl.AddAddrDAD(index, ip.Address))
		} else {
			ops = append(ops, rtnl.AddAddr(index, ip.Address))
		}
	}
	for _, rt := range r.Routes {
		gw := rt.GW
		if !gw.IsValid() {
			gw = gatewayOf(r, rt.Dst.Addr().Is4())
		}
		one := rtnl.Route{
			Dst: rt.Dst, Gateway: gw, Index: index, Protocol: unix.RTPROT_BOOT, MTU: rt.MTU, AdvMSS: rt.AdvMSS,
			Priority: rt.Priority, Scope: rt.Scope,
		}
		if rt.Table != nil {
			one.Table = *rt.Table
		}
		ops = append(ops, rtnl.AddRoute(one))
	}
	return conn.Do(ops)
}

// enableIPv6 undoes a namespace's "no IPv6" where an address needs it, and keeps addresses while a link is down.
func enableIPv6(ifName string, r *spec.Result) error {
	for _, ip := range r.IPs {
		if ip.Address.Addr().Is6() {
			return sysctls([2]string{"ipv6/conf/lo/disable_ipv6", "0"}, [2]string{"ipv6/conf/" + ifName + "/disable_ipv6", "0"},
				[2]string{"ipv6/conf/" + ifName + "/keep_addr_on_down", "1"})
		}
	}
	return nil
}

// forward turns on forwarding for the families of the result.
func (c *Call) forward(r *spec.Result) error {
	for _, ip := range r.IPs {
		key := "ipv4/ip_forward"
		if ip.Address.Addr().Is6() {
			key = "ipv6/conf/all/forwarding"
		}
		v, err := os.ReadFile("/proc/sys/net/" + key)
		if err != nil {
			return fmt.Errorf("network %s needs %s: %w", c.conf.Name, key, err)
		}
		if len(v) > 0 && v[0] == '0' {
			if err := sysctls([2]string{key, "1"}); err != nil {
				return err
			}
		}
	}
	return nil
}

// delInside deletes the container's interface, for attachments that no record of ours tells of.
func (c *Call) delInside() error {
	if c.Netns == "" {
		return nil
	}
	ns, err := c.openNetns()
	if gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer ns.Close() //nolint:errcheck // read only
	return inNetns(ns, func(conn *nlwire.Conn) error {
		ms, err := conn.Query("look up interface "+c.IfName, rtnl.GetLink(c.IfName))
		if errors.Is(err, unix.ENODEV) {
			return nil
		}
		if err != nil {
			return err
		}
		l, _ := rtnl.ParseLink(ms[0])
		return conn.Do([]nlwire.Op{rtnl.DelLink(l.Index)})
	})
}

// networks are the subnets of the result's addresses.
func networks(r *spec.Result) []netip.Prefix {
	var out []netip.Prefix
	for _, ip := range r.IPs {
		out = append(out, ip.Address.Masked())
	}
	return out
}
