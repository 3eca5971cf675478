package netconf

import (
	"net/netip"
	"strings"

	"github.com/berth-project/berth/cni/internal/spec"
)

// Request is what one pod asks for, from all the places where a runtime may say it.
type Request struct {
	// IPs are the wanted addresses, at most one per family; for a family without one the pool decides.
	IPs []netip.Addr
	// MAC is the wanted hardware address; zero if the plugin may choose.
	MAC [6]byte
	// Ports are the host ports.
	Ports []Port
	// Bandwidth are the limits; nil for none.
	Bandwidth *Bandwidth
	// Namespace, Pod, UID and CgroupPath are recorded for humans.
	Namespace, Pod, UID, CgroupPath string
}

// Port is a validated host port.
type Port struct {
	HostIP       netip.Addr
	Proto        byte
	Host, Target uint16
}

// ParseRequest merges CNI_ARGS, args.cni and runtimeConfig; the last one that says something wins, as
// CONVENTIONS.md orders them.
func ParseRequest(c *Config, cniArgs string) (*Request, error) {
	args, err := ParseArgs(cniArgs)
	if err != nil {
		return nil, err
	}
	r := &Request{
		Namespace: args["K8S_POD_NAMESPACE"], Pod: args["K8S_POD_NAME"], UID: args["K8S_POD_UID"],
		CgroupPath: c.RuntimeConfig.CgroupPath,
	}
	var bad []error
	for _, src := range []struct {
		key string
		ips []string
		mac string
	}{
		{"CNI_ARGS", split(args["IP"]), args["MAC"]},
		{"args.cni", c.Args.CNI.IPs, c.Args.CNI.MAC},
		{"runtimeConfig", c.RuntimeConfig.IPs, c.RuntimeConfig.MAC},
	} {
		if len(src.ips) > 0 {
			ips, err := parseIPs(c, src.key, src.ips)
			if err != nil {
				bad = append(bad, err)
			}
			r.IPs = ips
		}
		if src.mac != "" {
			mac, err := ParseMAC(src.key, src.mac)
			if err != nil {
				bad = append(bad, err)
			}
			r.MAC = mac
		}
	}
	ports, err := ParsePorts(c.RuntimeConfig.PortMappings)
	if err != nil {
		bad = append(bad, err)
	}
	r.Ports = ports
	if err := c.RuntimeConfig.Bandwidth.Check("runtimeConfig.bandwidth"); err != nil {
		bad = append(bad, err)
	}
	if !c.RuntimeConfig.Bandwidth.Zero() {
		r.Bandwidth = c.RuntimeConfig.Bandwidth
	}
	return r, join(bad)
}

func split(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, ",")
}

// ParseArgs reads CNI_ARGS: KEY=VALUE pairs between semicolons. Keys of other plugins pass, since every plugin of
// a chain sees the same string; values must be printable.
func ParseArgs(s string) (map[string]string, error) {
	out := map[string]string{}
	if len(s) > 64<<10 {
		return nil, spec.Errorf(spec.CodeEnvironment, "CNI_ARGS is %d bytes long", len(s))
	}
	for _, pair := range strings.Split(s, ";") {
		if strings.TrimSpace(pair) == "" {
			continue
		}
		k, v, ok := strings.Cut(pair, "=")
		if !ok || k == "" {
			return nil, spec.Errorf(spec.CodeEnvironment, "CNI_ARGS: %q is not KEY=VALUE", pair)
		}
		for _, c := range []byte(pair) {
			if c < ' ' || c == 0x7f {
				return nil, spec.Errorf(spec.CodeEnvironment, "CNI_ARGS: the value of %q holds a control character", k)
			}
		}
		out[k] = v
	}
	return out, nil
}

func parseIPs(c *Config, key string, in []string) ([]netip.Addr, error) {
	var out []netip.Addr
	for _, s := range in {
		text, _, _ := strings.Cut(s, "/")
		a, err := netip.ParseAddr(text)
		if err != nil || a.Zone() != "" || a.Is4In6() {
			return nil, spec.Errorf(spec.CodeConfig, "%s: ip %q is not an address", key, s)
		}
		inRange := false
		for _, r := range c.Ranges {
			inRange = inRange || r.Subnet.Contains(a)
		}
		if !inRange {
			return nil, spec.Errorf(spec.CodeConfig, "%s: ip %s is in none of the ranges %v", key, a, c.Pools())
		}
		for _, o := range out {
			if o.Is4() == a.Is4() {
				return nil, spec.Errorf(spec.CodeConfig, "%s: ips %s and %s are of one family", key, o, a)
			}
		}
		out = append(out, a)
	}
	return out, nil
}

// ParseMAC reads a hardware address that one interface can have; key is where it stood.
func ParseMAC(key, s string) (mac [6]byte, err error) {
	fail := spec.Errorf(spec.CodeConfig, "%s: mac %q is not a unicast address such as 02:00:00:00:00:01", key, s)
	if len(s) != 17 {
		return mac, fail
	}
	for i := range 6 {
		hi, lo := hexDigit(s[3*i]), hexDigit(s[3*i+1])
		if hi < 0 || lo < 0 || i < 5 && s[3*i+2] != ':' {
			return [6]byte{}, fail
		}
		mac[i] = byte(hi<<4 | lo)
	}
	if mac[0]&1 != 0 || mac == [6]byte{} {
		return [6]byte{}, fail
	}
	return mac, nil
}

func hexDigit(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

// ParsePorts checks the runtime's port mappings and leaves out those without a host port.
func ParsePorts(in []PortMapping) ([]Port, error) {
	var out []Port
	var bad []error
	for i, p := range in {
		if p.HostPort == 0 { // the kubelet sends containers' ports without a host port too
			continue
		}
		fail := func(format string, args ...any) {
			bad = append(bad, spec.Errorf(spec.CodeConfig, "runtimeConfig.portMappings[%d]: "+format, append([]any{i}, args...)...))
		}
		port := Port{Host: uint16(p.HostPort), Target: uint16(p.ContainerPort)}
		if p.HostPort < 0 || p.HostPort > 65535 {
			fail("hostPort %d is not a port", p.HostPort)
		}
		if p.ContainerPort <= 0 || p.ContainerPort > 65535 {
			fail("containerPort %d is not a port", p.ContainerPort)
		}
		switch strings.ToLower(p.Protocol) {
		case "tcp", "":
			port.Proto = 6
		case "udp":
			port.Proto = 17
		case "sctp":
			port.Proto = 132
		default:
			fail("protocol %q is none of tcp, udp, sctp", p.Protocol)
		}
		if p.HostIP != "" {
			a, err := netip.ParseAddr(p.HostIP)
			if err != nil || a.Zone() != "" {
				fail("hostIP %q is not an address", p.HostIP)
			}
			if port.HostIP = a.Unmap(); a == netip.IPv6Loopback() {
				fail("hostIP ::1 cannot be served, 127.0.0.1 can")
			}
		}
		out = append(out, port)
	}
	return out, join(bad)
}
