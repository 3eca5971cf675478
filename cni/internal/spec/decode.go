package spec

import (
	"encoding/json"
	"net/netip"
	"slices"
)

// wire is a result of any version as it is written: interfaces, ips and routes from 0.3.0 on, ip4 and ip6 before.
type wire struct {
	CNIVersion string      `json:"cniVersion"`
	Interfaces []Interface `json:"interfaces"`
	IPs        []struct {
		Address   string `json:"address"`
		Gateway   string `json:"gateway"`
		Interface *int   `json:"interface"`
	} `json:"ips"`
	Routes []wireRoute `json:"routes"`
	IP4    *wireOld    `json:"ip4"`
	IP6    *wireOld    `json:"ip6"`
	DNS    DNS         `json:"dns"`
}

type wireOld struct {
	IP      string      `json:"ip"`
	Gateway string      `json:"gateway"`
	Routes  []wireRoute `json:"routes"`
}

type wireRoute struct {
	Dst      string `json:"dst"`
	GW       string `json:"gw"`
	MTU      int    `json:"mtu"`
	AdvMSS   int    `json:"advmss"`
	Priority int    `json:"priority"`
	Table    *int   `json:"table"`
	Scope    *int   `json:"scope"`
}

// Decode reads a result of any version; one that does not say its version is in the given one. key names where it
// stood, for errors, which carry code 6 or 7.
func Decode(key string, raw []byte, version string) (*Result, error) {
	var w wire
	if err := json.Unmarshal(raw, &w); err != nil {
		return nil, Errorf(CodeDecode, "%s: %w", key, err)
	}
	if w.CNIVersion == "" {
		w.CNIVersion = version
	}
	if !slices.Contains(Versions(), w.CNIVersion) {
		return nil, Errorf(CodeVersion, "%s: cniVersion %q is none of %v", key, w.CNIVersion, Versions())
	}
	r := &Result{Interfaces: w.Interfaces, DNS: w.DNS}
	for i, ip := range w.IPs {
		one := IP{Interface: NoInterface}
		if ip.Interface != nil {
			one.Interface = *ip.Interface
		}
		if one.Interface >= len(w.Interfaces) {
			return nil, Errorf(CodeConfig, "%s: ips[%d].interface is %d, but there are %d interfaces", key, i, one.Interface, len(w.Interfaces))
		}
		if err := one.read(key, ip.Address, ip.Gateway); err != nil {
			return nil, err
		}
		r.IPs = append(r.IPs, one)
	}
	routes := w.Routes
	for _, old := range []*wireOld{w.IP4, w.IP6} {
		if old == nil {
			continue
		}
		one := IP{Interface: NoInterface}
		if err := one.read(key, old.IP, old.Gateway); err != nil {
			return nil, err
		}
		r.IPs, routes = append(r.IPs, one), append(routes, old.Routes...)
	}
	for i, rt := range routes {
		one, err := rt.read(key, i)
		if err != nil {
			return nil, err
		}
		r.Routes = append(r.Routes, one)
	}
	return r, nil
}

func (ip *IP) read(key, address, gateway string) (err error) {
	if ip.Address, err = netip.ParsePrefix(address); err != nil {
		return Errorf(CodeConfig, "%s: %q is not an address with a prefix length", key, address)
	}
	if gateway != "" {
		if ip.Gateway, err = netip.ParseAddr(gateway); err != nil {
			return Errorf(CodeConfig, "%s: gateway %q is not an address", key, gateway)
		}
	}
	return nil
}

func (w *wireRoute) read(key string, i int) (Route, error) {
	r := Route{MTU: w.MTU, AdvMSS: w.AdvMSS, Priority: w.Priority, Table: w.Table, Scope: w.Scope}
	var err error
	if r.Dst, err = netip.ParsePrefix(w.Dst); err != nil {
		return r, Errorf(CodeConfig, "%s: routes[%d].dst %q is not a network such as 0.0.0.0/0", key, i, w.Dst)
	}
	r.Dst = r.Dst.Masked()
	if w.GW != "" {
		if r.GW, err = netip.ParseAddr(w.GW); err != nil {
			return r, Errorf(CodeConfig, "%s: routes[%d].gw %q is not an address", key, i, w.GW)
		}
	}
	return r, nil
}

// UnmarshalJSON reads a route of a configuration, which is written as in a result.
func (r *Route) UnmarshalJSON(b []byte) error {
	var w wireRoute
	if err := json.Unmarshal(b, &w); err != nil {
		return err
	}
	one, err := w.read("routes", 0)
	if err == nil {
		*r = one
	}
	return err
}
