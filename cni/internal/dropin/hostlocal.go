package dropin

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/berth-project/berth/cni/internal/hostlocal"
	"github.com/berth-project/berth/cni/internal/netconf"
	"github.com/berth-project/berth/cni/internal/netns"
	"github.com/berth-project/berth/cni/internal/spec"
	"github.com/berth-project/berth/cni/internal/state"
	"github.com/berth-project/berth/proto/errs"
)

// hostLocalPlugin is IPAM type host-local when another plugin executes it.
func hostLocalPlugin() plugin {
	var h *hostLocal
	return plugin{
		parse: func(c *Call) (err error) {
			if err = c.parse(nil); err == nil {
				h, err = c.parseHostLocal()
			}
			return err
		},
		add: func(c *Call) (r *spec.Result, err error) {
			return r, c.with(func() error {
				rec := c.record(nil)
				if ns, err := netns.Open(c.Netns); err == nil { // whose end says that the lease is nobody's any more
					rec.NetnsIno = ns.Ino
					_ = ns.Close()
				}
				if err := c.refuseLeases(h); err != nil {
					return err
				}
				return c.net.Make(rec, func() error {
					r, err = c.takeLeases(h, rec)
					return err
				})
			})
		},
		check:  func(c *Call) error { return c.checkLeases(h) },
		del:    func(c *Call) error { return c.with(func() error { return c.delLeases(h) }) },
		status: func(c *Call) error { return c.statusLeases(h) },
		gc:     func(c *Call) error { return c.gcLeases(h) },
	}
}

func (c *Call) holder() hostlocal.Holder {
	return hostlocal.Holder{ContainerID: c.ContainerID, IfName: c.IfName}
}

// refuseLeases fails if the attachment has leases by a record of ours.
func (c *Call) refuseLeases(h *hostLocal) error {
	rec, err := c.net.Find(c.Type, c.Attachment)
	if err != nil || rec == nil {
		return err
	}
	dir, err := c.net.Leases(h.dir)
	if err != nil {
		return err
	}
	for _, l := range rec.Leases {
		if mine, err := dir.Holds(l.Addr, c.holder()); err != nil || mine {
			return errors.Join(err, errs.AlreadyExists.Errorf("%s has been allocated to %s, duplicate allocation is not allowed", l.Addr, c.ContainerID))
		}
	}
	return c.net.Remove(rec)
}

// takeLeases takes one address from each range set.
func (c *Call) takeLeases(h *hostLocal, rec *state.Record) (*spec.Result, error) {
	r := &spec.Result{Routes: h.Routes}
	if h.ResolvConf != "" {
		var err error
		if r.DNS, err = resolvConf(h.ResolvConf); err != nil {
			return nil, err
		}
	}
	wanted := slices.Clone(h.wanted)
	for i, set := range h.sets {
		var want netip.Addr
		if j := slices.IndexFunc(wanted, func(a netip.Addr) bool { _, ok := set.Find(a); return ok }); j >= 0 {
			want = wanted[j]
			wanted = slices.Delete(wanted, j, j+1)
		}
		a, from, err := c.takeLease(h, rec, set, want)
		if err != nil {
			return nil, fmt.Errorf("range set %d: %w", i, err)
		}
		dir, err := c.net.Leases(h.dir)
		if err != nil {
			return nil, err
		}
		if err := dir.Last(i, a); err != nil {
			return nil, err
		}
		r.IPs = append(r.IPs, spec.IP{Address: netip.PrefixFrom(a, from.Subnet.Bits()), Gateway: from.Gateway, Interface: spec.NoInterface})
	}
	if len(wanted) > 0 {
		return nil, errs.InvalidArgument.Errorf("failed to allocate all requested IPs: %v are in none of the ranges %v", wanted, h.sets)
	}
	return r, nil
}

// takeLease takes the wanted address, or any. Each is in the record before it is in the directory.
func (c *Call) takeLease(h *hostLocal, rec *state.Record, set hostlocal.RangeSet, want netip.Addr) (a netip.Addr, from hostlocal.Range, err error) {
	dir, err := c.net.Leases(h.dir)
	if err != nil {
		return a, from, err
	}
	if want.IsValid() {
		from, _ = set.Find(want)
		if want == from.Gateway {
			return a, from, errs.InvalidArgument.Errorf("requested ip %s is subnet's gateway", want)
		}
		if err := dir.Mark(from, want); err != nil {
			return a, from, err
		}
		ok, err := c.claim(dir, rec, want)
		if err == nil && !ok {
			err = errs.AlreadyExists.Errorf("requested IP address %s is not available in range set %s", want, set)
		}
		return want, from, err
	}
	for collected := false; ; {
		a, from, err = dir.Pick(set)
		if errors.Is(err, errs.ResourceExhausted) && !collected {
			collected = true
			if c.net.CollectDead() > 0 {
				continue
			}
		}
		if err != nil {
			return a, from, err
		}
		ok, err := c.claim(dir, rec, a)
		if err != nil || ok {
			return a, from, err
		}
	}
}

func (c *Call) claim(dir *hostlocal.Dir, rec *state.Record, a netip.Addr) (bool, error) {
	rec.Leases = append(rec.Leases, state.Lease{Dir: dir.Path(), Addr: a})
	if err := c.net.Save(rec); err != nil {
		return false, err
	}
	ok, err := dir.Claim(a, c.holder())
	if !ok {
		rec.Leases = rec.Leases[:len(rec.Leases)-1]
	}
	return ok, err
}

// delLeases goes by the record, and by the directory for leases that upstream's plugin made.
func (c *Call) delLeases(h *hostLocal) error {
	found, err := c.removeRecord()
	if err != nil || found {
		return err
	}
	return c.releaseLeases(h)
}

func (c *Call) releaseLeases(h *hostLocal) error {
	return c.withLeases(h, func(d *hostlocal.Dir) error { return d.ReleaseAll(c.holder()) })
}

func (c *Call) withLeases(h *hostLocal, fn func(*hostlocal.Dir) error) error {
	return c.with(func() error {
		d, err := c.net.Leases(h.dir)
		if err != nil {
			return err
		}
		return fn(d)
	})
}

func (c *Call) checkLeases(h *hostLocal) error {
	return c.withLeases(h, func(d *hostlocal.Dir) error {
		leases, err := d.List()
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(leases, func(l hostlocal.Lease) bool { return l.Holder == c.holder() }) {
			return errs.NotFound.Errorf("container %s, interface %s has no address in %s", c.ContainerID, c.IfName, h.dir)
		}
		return nil
	})
}

func (c *Call) statusLeases(h *hostLocal) error {
	return c.withLeases(h, func(d *hostlocal.Dir) error {
		for i, set := range h.sets {
			ok, err := d.Free(set)
			if err != nil {
				return err
			}
			if !ok {
				return spec.Errorf(spec.CodeUnavailable, "network %s: no address is left in range set %d (%s)", c.conf.Name, i, set)
			}
		}
		return nil
	})
}

func (c *Call) gcLeases(h *hostLocal) error {
	keep := map[netconf.Attachment]bool{}
	for _, v := range *c.conf.Valid {
		keep[v] = true
		keep[netconf.Attachment{ContainerID: v.ContainerID}] = true // upstream's first leases name no interface
	}
	return c.withLeases(h, func(d *hostlocal.Dir) error {
		return d.GC(func(h hostlocal.Holder) bool {
			return keep[netconf.Attachment{ContainerID: h.ContainerID, IfName: h.IfName}]
		})
	})
}
