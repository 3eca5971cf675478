package spec

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
)

// Versions lists what the plugin speaks, oldest first.
func Versions() []string {
	return []string{"0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"}
}

// DefaultVersion is what a configuration without cniVersion means (spec-upgrades.md).
const DefaultVersion = "0.2.0"

// AtLeast compares two versions of [Versions].
func AtLeast(v, than string) bool {
	return slices.Index(Versions(), v) >= slices.Index(Versions(), than)
}

// Result is the outcome of ADD in the newest version's terms.
type Result struct {
	Interfaces []Interface
	IPs        []IP
	Routes     []Route
	DNS        DNS
}

// Interface is one end of an attachment; Sandbox is empty on the host. MTU, SocketPath and PciID came with 1.1.0.
type Interface struct {
	Name       string `json:"name"`
	MAC        string `json:"mac,omitempty"`
	MTU        int    `json:"mtu,omitempty"`
	Sandbox    string `json:"sandbox,omitempty"`
	SocketPath string `json:"socketPath,omitempty"`
	PciID      string `json:"pciID,omitempty"`
}

// NoInterface is the index of an address that is on no interface of the result, as an IPAM plugin answers.
const NoInterface = -1

// IP is an address on the interface of that index.
type IP struct {
	Address   netip.Prefix
	Gateway   netip.Addr
	Interface int
}

// Route is a route in the container; without GW it leads to the gateway of its family. What is behind GW came with
// 1.1.0.
type Route struct {
	Dst      netip.Prefix `json:"dst"`
	GW       netip.Addr   `json:"gw,omitzero"`
	MTU      int          `json:"mtu,omitempty"`
	AdvMSS   int          `json:"advmss,omitempty"`
	Priority int          `json:"priority,omitempty"`
	Table    *int         `json:"table,omitempty"`
	Scope    *int         `json:"scope,omitempty"`
}

// DNS is passed through from the configuration or the runtime.
type DNS struct {
	Nameservers []string `json:"nameservers,omitempty"`
	Domain      string   `json:"domain,omitempty"`
	Search      []string `json:"search,omitempty"`
	Options     []string `json:"options,omitempty"`
}

// Empty says whether there is nothing in it.
func (d DNS) Empty() bool {
	return len(d.Nameservers)+len(d.Search)+len(d.Options) == 0 && d.Domain == ""
}

// Encode writes the result in the shape of a version.
func (r Result) Encode(version string) ([]byte, error) {
	out := map[string]any{"cniVersion": version}
	if !r.DNS.Empty() {
		out["dns"] = r.DNS
	}
	switch {
	case !slices.Contains(Versions(), version):
		return nil, Errorf(CodeVersion, "cniVersion %q is none of %v", version, Versions())
	case !AtLeast(version, "0.3.0"):
		r.encodeOld(out)
	default:
		r.encodeNew(version, out)
	}
	b, err := json.Marshal(out)
	if err != nil {
		return nil, fmt.Errorf("encode result: %w", err)
	}
	return append(b, '\n'), nil
}

// encodeOld writes 0.1.0 and 0.2.0: at most one address per family, and no interfaces.
func (r Result) encodeOld(out map[string]any) {
	for _, ip := range r.IPs {
		key := "ip6"
		if ip.Address.Addr().Is4() {
			key = "ip4"
		}
		if out[key] != nil {
			continue
		}
		one := map[string]any{"ip": ip.Address}
		if ip.Gateway.IsValid() {
			one["gateway"] = ip.Gateway
		}
		var routes []Route
		for _, rt := range r.Routes {
			if rt.Dst.Addr().Is4() == ip.Address.Addr().Is4() {
				routes = append(routes, Route{Dst: rt.Dst, GW: rt.GW})
			}
		}
		if routes != nil {
			one["routes"] = routes
		}
		out[key] = one
	}
}

// encodeNew writes 0.3.0 and later: the address family is named until 0.4.0, the MTU from 1.1.0 on.
func (r Result) encodeNew(version string, out map[string]any) {
	ifs, routes := slices.Clone(r.Interfaces), slices.Clone(r.Routes)
	if !AtLeast(version, "1.1.0") {
		for i := range ifs {
			ifs[i].MTU, ifs[i].SocketPath, ifs[i].PciID = 0, "", ""
		}
		for i := range routes {
			routes[i] = Route{Dst: routes[i].Dst, GW: routes[i].GW}
		}
	}
	ips := make([]map[string]any, 0, len(r.IPs))
	for _, ip := range r.IPs {
		one := map[string]any{"address": ip.Address}
		if ip.Interface >= 0 {
			one["interface"] = ip.Interface
		}
		if ip.Gateway.IsValid() {
			one["gateway"] = ip.Gateway
		}
		if !AtLeast(version, "1.0.0") {
			one["version"] = "6"
			if ip.Address.Addr().Is4() {
				one["version"] = "4"
			}
		}
		ips = append(ips, one)
	}
	if len(ifs) > 0 {
		out["interfaces"] = ifs
	}
	if len(ips) > 0 {
		out["ips"] = ips
	}
	if len(routes) > 0 {
		out["routes"] = routes
	}
}
