package dropin

import (
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/berth-project/berth/cni/internal/hostlocal"
	"github.com/berth-project/berth/cni/internal/netconf"
	"github.com/berth-project/berth/cni/internal/spec"
)

// ipRange is one range as it is configured.
type ipRange struct {
	Subnet     string `json:"subnet"`
	RangeStart string `json:"rangeStart"`
	RangeEnd   string `json:"rangeEnd"`
	Gateway    string `json:"gateway"`
}

// hostLocal is the configuration of IPAM type host-local: one address from each range set.
type hostLocal struct {
	ipRange
	Ranges     [][]ipRange  `json:"ranges"`
	Routes     []spec.Route `json:"routes"`
	DataDir    string       `json:"dataDir"`
	ResolvConf string       `json:"resolvConf"`

	sets   []hostlocal.RangeSet
	wanted []netip.Addr
	dir    string
}

// defaultDataDir is upstream's.
const defaultDataDir = "/var/lib/cni/networks"

// parseHostLocal reads the key "ipam". Ranges of the runtime come first, then the one that stands in "ipam" itself.
func (c *Call) parseHostLocal() (*hostLocal, error) {
	var all struct {
		IPAM *hostLocal `json:"ipam"`
	}
	if err := json.Unmarshal(c.Stdin, &all); err != nil {
		return nil, netconf.DecodeError(err)
	}
	h := all.IPAM
	if h == nil {
		return nil, spec.Errorf(spec.CodeConfig, "key \"ipam\" is missing")
	}
	type source struct {
		key string
		set []ipRange
	}
	var sets []source
	for _, s := range c.conf.RuntimeConfig.IPRanges {
		sets = append(sets, source{"runtimeConfig.ipRanges", s})
	}
	if h.Subnet != "" {
		sets = append(sets, source{"ipam", []ipRange{h.ipRange}})
	}
	for _, s := range h.Ranges {
		sets = append(sets, source{"ipam.ranges", s})
	}
	if len(sets) == 0 {
		return nil, spec.Errorf(spec.CodeConfig, "ipam: no IP ranges specified: set \"ranges\" or \"subnet\"")
	}
	for i, s := range sets {
		set, err := parseSet(s.set)
		if err != nil {
			return nil, spec.Errorf(spec.CodeConfig, "%s: range set %d: %w", s.key, i, err)
		}
		h.sets = append(h.sets, set)
	}
	if h.DataDir == "" {
		h.DataDir = defaultDataDir
	}
	if !filepath.IsAbs(h.DataDir) {
		return nil, spec.Errorf(spec.CodeConfig, "ipam.dataDir %q is not absolute", h.DataDir)
	}
	h.dir = filepath.Join(h.DataDir, c.conf.Name)
	if err := c.wantedAddrs(h); err != nil {
		return nil, err
	}
	return h, c.checkSets(h)
}

func (c *Call) wantedAddrs(h *hostLocal) error {
	args, err := netconf.ParseArgs(c.Args)
	if err != nil {
		return err
	}
	lists := []struct {
		key string
		ips []string
	}{{"args.cni.ips", c.conf.Args.CNI.IPs}, {"runtimeConfig.ips", c.conf.RuntimeConfig.IPs}}
	if v := args["IP"]; v != "" {
		lists = append(lists[:0:0], append([]struct {
			key string
			ips []string
		}{{"CNI_ARGS: IP", strings.Split(v, ",")}}, lists...)...)
	}
	for _, l := range lists {
		as, err := parseAddrs(l.key, l.ips)
		if err != nil {
			return spec.Errorf(spec.CodeConfig, "%w", err)
		}
		h.wanted = append(h.wanted, as...)
	}
	return nil
}

// checkSets refuses sets that overlap, and more than one per family in the first two versions.
func (c *Call) checkSets(h *hostLocal) error {
	var ips []spec.IP
	for i, s := range h.sets {
		ips = append(ips, spec.IP{Address: s[0].Subnet})
		for j, o := range h.sets[:i] {
			for _, a := range s {
				for _, b := range o {
					if a.Subnet.Addr().Is4() == b.Subnet.Addr().Is4() && !a.End.Less(b.Start) && !b.End.Less(a.Start) {
						return spec.Errorf(spec.CodeConfig, "ipam: range set %d overlaps with %d", j, i)
					}
				}
			}
		}
	}
	return c.onePerFamily(ips)
}

func parseSet(in []ipRange) (hostlocal.RangeSet, error) {
	var out hostlocal.RangeSet
	if len(in) == 0 {
		return nil, errors.New("is empty")
	}
	for i, r := range in {
		one, err := r.complete()
		if err != nil {
			return nil, err
		}
		for _, o := range out {
			if o.Subnet.Addr().Is4() != one.Subnet.Addr().Is4() {
				return nil, spec.Errorf(spec.CodeConfig, "mixed address families")
			}
			if !o.End.Less(one.Start) && !one.End.Less(o.Start) {
				return nil, spec.Errorf(spec.CodeConfig, "subnet %d overlaps another", i)
			}
		}
		out = append(out, one)
	}
	return out, nil
}

// complete fills in what a range leaves out: the first address is the gateway, and all others are given out but for
// IPv4's broadcast.
func (r ipRange) complete() (out hostlocal.Range, err error) {
	if r.Subnet == "" {
		return out, errors.New("subnet is missing")
	}
	s, err := netip.ParsePrefix(r.Subnet)
	switch {
	case err != nil:
		return out, spec.Errorf(spec.CodeConfig, "subnet %q is not a network such as 10.1.0.0/16", r.Subnet)
	case s.Addr().Is4In6():
		return out, spec.Errorf(spec.CodeConfig, "subnet %s is an IPv4 network in IPv6 clothes", s)
	case s != s.Masked():
		return out, spec.Errorf(spec.CodeConfig, "subnet %s has bits behind its prefix, want %s", s, s.Masked())
	case s.Bits() > s.Addr().BitLen()-2:
		return out, spec.Errorf(spec.CodeConfig, "subnet %s is too small to allocate from", s)
	}
	out = hostlocal.Range{Subnet: s, Start: s.Addr().Next(), End: last(s), Gateway: s.Addr().Next()}
	for _, f := range []struct {
		key, value string
		to         *netip.Addr
		outside    bool
	}{{"rangeStart", r.RangeStart, &out.Start, false}, {"rangeEnd", r.RangeEnd, &out.End, false}, {"gateway", r.Gateway, &out.Gateway, true}} {
		if f.value == "" {
			continue
		}
		a, err := netip.ParseAddr(f.value)
		if err != nil || a.Zone() != "" {
			return out, spec.Errorf(spec.CodeConfig, "%s %q is not an address", f.key, f.value)
		}
		if *f.to = a.Unmap(); !f.outside && !s.Contains(*f.to) {
			return out, spec.Errorf(spec.CodeConfig, "%s %s is not in subnet %s", f.key, f.value, s)
		}
	}
	if out.End.Less(out.Start) {
		return out, spec.Errorf(spec.CodeConfig, "rangeEnd %s is before rangeStart %s", out.End, out.Start)
	}
	return out, nil
}

// last is the last address of a subnet that can be given out.
func last(s netip.Prefix) netip.Addr {
	b := s.Addr().AsSlice()
	for i := s.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	if a.Is4() {
		return a.Prev()
	}
	return a
}

// resolvConf reads a file in the format of resolv.conf(5).
func resolvConf(path string) (spec.DNS, error) {
	var d spec.DNS
	b, err := os.ReadFile(path)
	if err != nil {
		return d, spec.Errorf(spec.CodeConfig, "ipam.resolvConf: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			d.Nameservers = append(d.Nameservers, f[1])
		case "domain":
			d.Domain = f[1]
		case "search":
			d.Search = append(d.Search, f[1:]...)
		case "options":
			d.Options = append(d.Options, f[1:]...)
		}
	}
	return d, nil
}
