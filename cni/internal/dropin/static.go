package dropin

import (
	"encoding/json"
	"net/netip"
	"strings"

	"github.com/berth-project/berth/cni/internal/netconf"
	"github.com/berth-project/berth/cni/internal/spec"
)

// static is the configuration of IPAM type static: addresses that the configuration or the pod names.
type static struct {
	Addresses []struct {
		Address string `json:"address"`
		Gateway string `json:"gateway"`
	} `json:"addresses"`
	Routes []spec.Route `json:"routes"`
	DNS    spec.DNS     `json:"dns"`

	ips []spec.IP
}

func staticPlugin() plugin {
	var s *static
	return plugin{
		stateless: true,
		parse: func(c *Call) (err error) {
			if err = c.parse(nil); err == nil {
				s, err = c.parseStatic()
			}
			return err
		},
		add:   func(*Call) (*spec.Result, error) { return s.result(), nil },
		check: func(c *Call) error { return c.checkStatic(s) },
		del:   func(*Call) error { return nil },
	}
}

// parseStatic reads the key "ipam". Addresses of CNI_ARGS come on top; those of args.cni replace all, and those of the
// runtime replace these.
func (c *Call) parseStatic() (*static, error) {
	var all struct {
		IPAM *static `json:"ipam"`
	}
	if err := json.Unmarshal(c.Stdin, &all); err != nil {
		return nil, netconf.DecodeError(err)
	}
	s := all.IPAM
	if s == nil {
		return nil, spec.Errorf(spec.CodeConfig, "key \"ipam\" is missing")
	}
	for i, a := range s.Addresses {
		if err := s.add("ipam.addresses", i, a.Address, a.Gateway); err != nil {
			return nil, err
		}
	}
	args, err := netconf.ParseArgs(c.Args)
	if err != nil {
		return nil, err
	}
	if err := s.fromArgs(args); err != nil {
		return nil, err
	}
	for _, src := range []struct {
		key string
		ips []string
	}{{"args.cni.ips", c.conf.Args.CNI.IPs}, {"runtimeConfig.ips", c.conf.RuntimeConfig.IPs}} {
		if len(src.ips) == 0 {
			continue
		}
		s.ips = nil
		for i, a := range src.ips {
			if err := s.add(src.key, i, a, ""); err != nil {
				return nil, err
			}
		}
	}
	return s, c.onePerFamily(s.ips)
}

// onePerFamily refuses what results of the first two versions cannot say.
func (c *Call) onePerFamily(ips []spec.IP) error {
	n := map[bool]int{}
	for _, ip := range ips {
		n[ip.Address.Addr().Is4()]++
	}
	if (n[true] > 1 || n[false] > 1) && !spec.AtLeast(c.conf.CNIVersion, "0.3.0") {
		return spec.Errorf(spec.CodeConfig, "cniVersion %s has one address per family, the configuration %d", c.conf.CNIVersion, max(n[true], n[false]))
	}
	return nil
}

func (s *static) fromArgs(args map[string]string) error {
	if v := args["IP"]; v != "" {
		for i, a := range strings.Split(v, ",") {
			if err := s.add("CNI_ARGS: IP", i, strings.TrimSpace(a), ""); err != nil {
				return err
			}
		}
	}
	if v := args["GATEWAY"]; v != "" {
		gws, err := parseAddrs("CNI_ARGS: GATEWAY", strings.Split(strings.ReplaceAll(v, " ", ""), ","))
		if err != nil {
			return err
		}
		for _, gw := range gws {
			for i := range s.ips {
				if s.ips[i].Address.Contains(gw) {
					s.ips[i].Gateway = gw
				}
			}
		}
	}
	return nil
}

func (s *static) add(key string, i int, address, gateway string) error {
	ip := spec.IP{Interface: spec.NoInterface}
	var err error
	if ip.Address, err = netip.ParsePrefix(address); err != nil {
		return spec.Errorf(spec.CodeConfig, "%s[%d]: %q is not an address with a prefix length such as 10.0.0.5/24", key, i, address)
	}
	if gateway != "" {
		if ip.Gateway, err = netip.ParseAddr(gateway); err != nil {
			return spec.Errorf(spec.CodeConfig, "%s[%d]: gateway %q is not an address", key, i, gateway)
		}
	}
	s.ips = append(s.ips, ip)
	return nil
}

func (s *static) result() *spec.Result {
	return &spec.Result{IPs: s.ips, Routes: s.Routes, DNS: s.DNS}
}

func (c *Call) checkStatic(s *static) error {
	r, err := c.chained()
	if err != nil {
		return err
	}
	for _, want := range s.ips {
		for _, have := range r.IPs {
			if have.Address.Addr() == want.Address.Addr() && want.Gateway.IsValid() && want.Gateway != have.Gateway {
				return mismatch("address %s has gateway %s in prevResult, and %s in the configuration", want.Address, have.Gateway, want.Gateway)
			}
		}
	}
	return nil
}
