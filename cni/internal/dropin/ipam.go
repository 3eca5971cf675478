package dropin

import (
	"errors"
	"net/netip"

	"github.com/berth-project/berth/cni/internal/delegate"
	"github.com/berth-project/berth/cni/internal/spec"
	"github.com/berth-project/berth/cni/internal/state"
)

// ipam is where an interface's addresses come from: one of the two kinds that are built in, or a plugin that is
// executed. The built-in ones work under the state lock, the others outside it, because they may take long.
type ipam struct {
	hostLocal *hostLocal
	static    *static
	// foreign is the type of a plugin that is executed.
	foreign string
	result  *spec.Result
}

// parseIPAM reads the key "ipam" of a plugin that makes an interface; nil if there is none.
func (c *Call) parseIPAM() (*ipam, error) {
	switch c.conf.IPAM.Type {
	case "":
		return nil, nil //nolint:nilnil // documented
	case "host-local":
		h, err := c.parseHostLocal()
		return &ipam{hostLocal: h}, err
	case "static":
		s, err := c.parseStatic()
		return &ipam{static: s}, err
	}
	return &ipam{foreign: c.conf.IPAM.Type}, nil
}

func (c *Call) delegate(typ, verb string) ([]byte, error) {
	return delegate.Run(delegate.Call{Type: typ, Path: c.Path, Env: c.Env, Stdin: c.Stdin}, verb)
}

// before asks a foreign plugin for addresses, before the lock is taken.
func (i *ipam) before(c *Call) error {
	if i == nil || i.foreign == "" {
		return nil
	}
	out, err := c.delegate(i.foreign, "ADD")
	if err == nil {
		i.result, err = spec.Decode("the result of IPAM plugin "+i.foreign, out, c.conf.CNIVersion)
	}
	return err
}

// add returns addresses, routes and DNS. The record tells of leases before they are made.
func (i *ipam) add(c *Call, rec *state.Record) (*spec.Result, error) {
	r := i.result
	var err error
	switch {
	case i.hostLocal != nil:
		r, err = c.takeLeases(i.hostLocal, rec)
	case i.static != nil:
		r = i.static.result()
	}
	if err == nil && len(r.IPs) == 0 {
		err = spec.Errorf(spec.CodeConfig, "IPAM plugin %s returned no address", c.conf.IPAM.Type)
	}
	return r, err
}

// del gives everything back that no record tells of.
func (i *ipam) del(c *Call) error {
	switch {
	case i == nil:
		return nil
	case i.foreign != "":
		_, err := c.delegate(i.foreign, "DEL")
		return err
	case i.hostLocal != nil:
		return c.releaseLeases(i.hostLocal)
	}
	return nil
}

// check says whether the addresses are still the attachment's.
func (i *ipam) check(c *Call) error {
	switch {
	case i == nil:
		return nil
	case i.foreign != "":
		_, err := c.delegate(i.foreign, "CHECK")
		return err
	case i.hostLocal != nil:
		return c.checkLeases(i.hostLocal)
	}
	return c.checkStatic(i.static)
}

// status says whether there is an address left.
func (i *ipam) status(c *Call) error {
	switch {
	case i == nil:
		return nil
	case i.foreign != "":
		_, err := c.delegate(i.foreign, "STATUS")
		return err
	case i.hostLocal != nil:
		return c.statusLeases(i.hostLocal)
	}
	return nil
}

// gc gives back what the runtime does not list.
func (i *ipam) gc(c *Call) error {
	switch {
	case i == nil:
		return nil
	case i.foreign != "":
		_, err := c.delegate(i.foreign, "GC")
		return err
	case i.hostLocal != nil:
		return c.gcLeases(i.hostLocal)
	}
	return nil
}

// parseAddrs reads a list of addresses that may have a prefix length.
func parseAddrs(key string, in []string) ([]netip.Addr, error) {
	var out []netip.Addr
	var bad []error
	for i, s := range in {
		a, err := netip.ParseAddr(s)
		if p, perr := netip.ParsePrefix(s); err != nil && perr == nil {
			a, err = p.Addr(), nil
		}
		if err != nil || a.Zone() != "" {
			bad = append(bad, spec.Errorf(spec.CodeConfig, "%s[%d]: %q is not an address", key, i, s))
			continue
		}
		out = append(out, a.Unmap())
	}
	return out, errors.Join(bad...)
}
