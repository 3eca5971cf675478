package podnet

import (
	"fmt"
	"net/netip"

	"github.com/berth-project/berth/cni/internal/ctnl"
	"github.com/berth-project/berth/cni/internal/loguard"
	"github.com/berth-project/berth/cni/internal/nlwire"
	"github.com/berth-project/berth/cni/internal/rtnl"
	"github.com/berth-project/berth/cni/internal/ruleset"
	"github.com/berth-project/berth/cni/internal/state"
	"github.com/berth-project/berth/proto/errs"
	"golang.org/x/sys/unix"
)

// checkPorts refuses a host port that another attachment has.
func (n *Network) checkPorts(rec *state.Record) error {
	if len(rec.Pod.Ports) == 0 {
		return nil
	}
	for _, e := range ruleset.Elements(rec.Pod) {
		if e.Data == nil {
			continue
		}
		has, err := n.nft.Has(ruleset.Table(), e)
		if err != nil || !has {
			continue // a table that cannot answer is made again below
		}
		if err := n.conflict(rec); err != nil {
			return err
		}
		return errs.AlreadyExists.Errorf("a host port of container %s is in use", rec.ContainerID)
	}
	return nil
}

// conflict names the first attachment that has one of rec's host ports.
func (n *Network) conflict(rec *state.Record) error {
	records, _, err := n.store.List()
	if err != nil {
		return err
	}
	for _, r := range records {
		if r.Pod.Link == rec.Pod.Link {
			continue
		}
		for _, p := range r.Pod.Ports {
			for _, q := range rec.Pod.Ports {
				if p.Proto == q.Proto && p.Host == q.Host && p.HostIP == q.HostIP {
					return errs.AlreadyExists.Errorf("host port %d (protocol %d) is in use by container %s (%s/%s)",
						q.Host, q.Proto, r.ContainerID, r.Namespace, r.PodName)
				}
			}
		}
	}
	return nil
}

// flushFlows forgets the UDP flows to an attachment's host ports. On ADD those are the ones that lead anywhere
// else, on DEL the ones that lead to the attachment; nobody else's flow is touched.
func (n *Network) flushFlows(rec *state.Record, add bool) error {
	var c *nlwire.Conn
	var local map[netip.Addr]bool
	for _, p := range rec.Pod.Ports {
		if p.Proto != unix.IPPROTO_UDP {
			continue
		}
		if c == nil {
			var err error
			if c, err = nlwire.Dial(unix.NETLINK_NETFILTER); err != nil {
				return err
			}
			defer c.Close() //nolint:errcheck,gocritic // once: c is set now
			if local, err = n.localAddrs(); err != nil {
				return err
			}
		}
		for _, a := range rec.Addrs() {
			if p.HostIP.IsValid() && p.HostIP.Is4() != a.Is4() {
				continue
			}
			_, err := ctnl.Flush(c, a.Is6(), p.Proto, p.Host, func(f ctnl.Flow) bool {
				ours := f.ReplySrc == a && f.ReplyPort == p.Target
				if !add {
					return ours && f.Dst != a
				}
				here := f.Dst == p.HostIP || (!p.HostIP.IsValid() || p.HostIP.IsUnspecified()) && (local[f.Dst] || f.Dst.IsLoopback())
				return here && !ours
			})
			if err != nil {
				return fmt.Errorf("forget flows to host port %d: %w", p.Host, err)
			}
		}
	}
	return nil
}

func (n *Network) localAddrs() (map[netip.Addr]bool, error) {
	ms, err := n.route.Query("list addresses", rtnl.DumpAddrs())
	if err != nil {
		return nil, err
	}
	out := map[netip.Addr]bool{}
	for _, m := range ms {
		if _, a, ok := rtnl.ParseAddr(m); ok {
			out[a] = true
		}
	}
	return out, nil
}

// openLocalnet says whether the host end may carry packets from 127.0.0.1, which a host port on localhost needs.
// It does so only when nothing can come back the other way: a program on the link itself drops what is addressed
// to 127/8, because the table's guard, which does the same, can be flushed by anyone while the sysctl stays
// (CVE-2020-8558). Where the kernel refuses the program, the port is served on all addresses but 127/8.
func (n *Network) openLocalnet(rec *state.Record, index int32) bool {
	if !onLocalhost(rec) {
		return false
	}
	if err := n.route.Do(loguard.Ops(index)); err != nil {
		n.remark("host ports of container %s are not served on 127.0.0.1: %v", rec.ContainerID, err)
		return false
	}
	return true
}

func onLocalhost(rec *state.Record) bool {
	v4 := false
	for _, a := range rec.Addrs() {
		v4 = v4 || a.Is4()
	}
	for _, p := range rec.Pod.Ports {
		if v4 && (!p.HostIP.IsValid() || p.HostIP.Is4() && (p.HostIP.IsUnspecified() || p.HostIP.IsLoopback())) {
			return true
		}
	}
	return false
}
