package dropin

import (
	"crypto/sha512"
	"errors"
	"fmt"

	"github.com/berth-project/berth/cni/internal/netconf"
	"github.com/berth-project/berth/cni/internal/netns"
	"github.com/berth-project/berth/cni/internal/nlwire"
	"github.com/berth-project/berth/cni/internal/rtnl"
	"github.com/berth-project/berth/cni/internal/shape"
	"github.com/berth-project/berth/cni/internal/spec"
	"github.com/berth-project/berth/proto/errs"
	"golang.org/x/sys/unix"
)

// bandwidthPlugin limits what a container receives and sends. The limits stand in the configuration itself or, if
// none does, come from the runtime.
func bandwidthPlugin() plugin {
	var b netconf.Bandwidth
	return plugin{
		since: "0.3.0",
		parse: func(c *Call) error {
			if err := c.parse(&b); err != nil {
				return err
			}
			key := "bandwidth"
			if b.Zero() && c.conf.RuntimeConfig.Bandwidth != nil {
				b, key = *c.conf.RuntimeConfig.Bandwidth, "runtimeConfig.bandwidth"
			}
			return b.Check(key)
		},
		add:   func(c *Call) (*spec.Result, error) { return c.addBandwidth(&b) },
		check: func(c *Call) error { return c.checkBandwidth(&b) },
		del:   func(c *Call) error { return c.with(c.delBandwidth) },
	}
}

// ifbName is upstream's name of the link that a container's traffic is led through.
func (c *Call) ifbName() string {
	return fmt.Sprintf("bwp%x", sha512.Sum512([]byte(c.conf.Name+c.ContainerID)))[:15]
}

func (c *Call) addBandwidth(b *netconf.Bandwidth) (*spec.Result, error) {
	if b.Zero() {
		return nil, nil //nolint:nilnil // hands on prevResult
	}
	r, err := c.chained()
	if err != nil {
		return nil, err
	}
	ns, err := c.openNetns()
	if err != nil {
		return nil, err
	}
	defer ns.Close() //nolint:errcheck // read only
	return r, c.with(func() error {
		if err := c.refuseSecond(); err != nil {
			return err
		}
		host, err := c.hostEnd(ns)
		if err != nil {
			return err
		}
		rec := c.record(ns)
		rec.Witness = host.Name
		if b.EgressRate > 0 {
			rec.Links = []string{c.ifbName()}
		}
		return c.net.Make(rec, func() error {
			if b.IngressRate > 0 {
				if err := c.net.Route().Do([]nlwire.Op{shape.Bucket(host.Index, shape.NewLimit(b.IngressRate, b.IngressBurst, host.MTU))}); err != nil {
					return err
				}
			}
			if b.EgressRate == 0 {
				return nil
			}
			ifb, err := c.limitEgress(host, rec.Alias(), shape.NewLimit(b.EgressRate, b.EgressBurst, host.MTU))
			if err == nil {
				r.Interfaces = append(r.Interfaces, spec.Interface{Name: ifb.Name, MAC: ifb.MAC.String()})
			}
			return err
		})
	})
}

// limitEgress leads what the container sends through a link that is limited.
func (c *Call) limitEgress(host rtnl.Link, alias string, l shape.Limit) (rtnl.Link, error) {
	name := c.ifbName()
	if err := c.net.Route().Do([]nlwire.Op{shape.AddIFB(name, host.MTU)}); err != nil {
		return rtnl.Link{}, err
	}
	ifb, found, err := c.net.Link(name)
	if err != nil || !found {
		return ifb, errors.Join(err, fmt.Errorf("link %s vanished", name))
	}
	ops := append(shape.Redirect(host.Index, ifb.Index), shape.Bucket(ifb.Index, l), rtnl.SetAttrs(ifb.Index, rtnl.Attrs{Alias: &alias}))
	return ifb, c.net.Route().Do(ops)
}

// hostEnd is the other end of the container's veth.
func (c *Call) hostEnd(ns *netns.NS) (rtnl.Link, error) {
	in, err := c.inside(ns)
	if err != nil {
		return in, err
	}
	if in.Kind != "veth" || in.Peer <= 0 {
		return in, errs.InvalidArgument.Errorf("interface %s of container %s is no veth, so it has no end on the host", c.IfName, c.ContainerID)
	}
	ms, err := c.net.Route().Query("look up the container's host end", rtnl.GetLinkIndex(in.Peer))
	if errors.Is(err, unix.ENODEV) {
		return in, errs.InvalidArgument.Errorf("the other end of interface %s of container %s is not in this namespace", c.IfName, c.ContainerID)
	}
	if err != nil {
		return in, err
	}
	l, ok := rtnl.ParseLink(ms[0])
	if !ok || l.Kind != "veth" {
		return l, errs.InvalidArgument.Errorf("the other end of interface %s of container %s is not in this namespace", c.IfName, c.ContainerID)
	}
	return l, nil
}

// inside is the container's interface.
func (c *Call) inside(ns *netns.NS) (l rtnl.Link, err error) {
	err = ns.Do(func() error {
		l, err = lookIn(c.IfName)
		return err
	})
	return l, err
}

// lookIn looks up a link in the calling thread's namespace.
func lookIn(name string) (l rtnl.Link, err error) {
	conn, err := nlwire.Dial(unix.NETLINK_ROUTE)
	if err != nil {
		return l, err
	}
	defer conn.Close() //nolint:errcheck // read only
	ms, err := conn.Query("look up interface "+name, rtnl.GetLink(name))
	if errors.Is(err, unix.ENODEV) {
		return l, errs.FailedPrecondition.Errorf("the container has no interface %s", name)
	}
	if err != nil {
		return l, err
	}
	l, _ = rtnl.ParseLink(ms[0])
	return l, nil
}

func (c *Call) checkBandwidth(b *netconf.Bandwidth) error {
	if _, err := c.chained(); err != nil || b.Zero() {
		return err
	}
	ns, err := c.openNetns()
	if err != nil {
		return err
	}
	defer ns.Close() //nolint:errcheck // read only
	return c.with(func() error {
		host, err := c.hostEnd(ns)
		if err != nil {
			return err
		}
		ms, err := c.net.Route().Query("list qdiscs", shape.Dump())
		if err != nil {
			return err
		}
		want := map[int32]shape.Limit{}
		if b.IngressRate > 0 {
			want[host.Index] = shape.NewLimit(b.IngressRate, b.IngressBurst, host.MTU)
		}
		if b.EgressRate > 0 {
			ifb, found, err := c.net.Link(c.ifbName())
			if err != nil || !found {
				return errors.Join(err, mismatch("link %s, which limits what the container sends, is missing", c.ifbName()))
			}
			want[ifb.Index] = shape.NewLimit(b.EgressRate, b.EgressBurst, host.MTU)
		}
		for _, m := range ms {
			if index, rate, queue, ok := shape.Parse(m); ok && want[index] != (shape.Limit{}) && want[index].Matches(rate, queue) {
				delete(want, index)
			}
		}
		for index, l := range want {
			err = errors.Join(err, mismatch("link %d is not limited to %d bytes/s", index, l.Rate))
		}
		return err
	})
}

func mismatch(format string, args ...any) error {
	return errs.FailedPrecondition.Errorf(format, args...)
}

// delBandwidth also takes away the link of an attachment that upstream's plugin made.
func (c *Call) delBandwidth() error {
	found, err := c.removeRecord()
	if err != nil || found {
		return err
	}
	return c.net.DeleteLink(c.ifbName())
}
