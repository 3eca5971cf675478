package conform

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
)

// Conf is a plugin's configuration.
type Conf map[string]any

// with returns a copy with more keys.
func (c Conf) with(more Conf) Conf {
	out := maps.Clone(c)
	maps.Copy(out, more)
	return out
}

func (c Conf) json() string {
	b, err := json.Marshal(c)
	if err != nil {
		panic(err) // literals of this package
	}
	return string(b)
}

// Subject is a type under test: the last plugin of a chain.
type Subject struct {
	Name  string
	Chain []Conf
	// Since is the first version that the type has.
	Since string
	// Makes says that the type makes the interface, Addrs that it gives out addresses of a range.
	Makes, Addrs bool
}

func (s Subject) last() Conf { return s.Chain[len(s.Chain)-1] }

const net4, net6 = "10.77.0.0/24", "fd77::/64"

func bridge() Conf {
	return Conf{
		"type": "bridge", "bridge": "cni0", "isDefaultGateway": true, "ipMasq": true,
		"ipam": Conf{"type": "host-local", "ranges": []any{[]any{Conf{"subnet": net4}}, []any{Conf{"subnet": net6}}}},
	}
}

func ptp() Conf {
	return Conf{
		"type": "ptp", "ipMasq": true,
		"ipam": Conf{
			"type": "host-local", "ranges": []any{[]any{Conf{"subnet": net4}}, []any{Conf{"subnet": net6}}},
			"routes": []any{Conf{"dst": "0.0.0.0/0"}, Conf{"dst": "::/0"}},
		},
	}
}

func portmap() Conf {
	return Conf{
		"type": "portmap", "capabilities": Conf{"portMappings": true},
		"runtimeConfig": Conf{"portMappings": []any{
			Conf{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
			Conf{"hostPort": 8053, "containerPort": 53, "protocol": "udp"},
		}},
	}
}

func bandwidth() Conf {
	return Conf{"type": "bandwidth", "ingressRate": 8000000, "ingressBurst": 800000, "egressRate": 8000000, "egressBurst": 800000}
}

func tuning() Conf {
	return Conf{
		"type": "tuning", "mac": "02:11:22:33:44:55", "mtu": 1400,
		"sysctl": Conf{"net.core.somaxconn": "500", "net.ipv4.conf.IFNAME.arp_filter": "1"},
	}
}

// Subjects are the types, as they are used in the field.
func Subjects() []Subject {
	return []Subject{
		{Name: "bridge", Chain: []Conf{bridge()}, Makes: true, Addrs: true},
		{Name: "ptp", Chain: []Conf{ptp()}, Makes: true, Addrs: true},
		{Name: "host-local", Chain: []Conf{{"type": "x", "ipam": Conf{"type": "host-local", "subnet": net4}}}, Addrs: true},
		{Name: "static", Chain: []Conf{{"type": "x", "ipam": Conf{"type": "static", "addresses": []any{Conf{"address": "10.77.0.9/24", "gateway": "10.77.0.1"}}}}}},
		{Name: "loopback", Chain: []Conf{{"type": "loopback"}}},
		{Name: "portmap", Chain: []Conf{bridge(), portmap()}},
		{Name: "bandwidth", Chain: []Conf{bridge(), bandwidth()}, Since: "0.3.0"},
		{Name: "firewall", Chain: []Conf{bridge(), {"type": "firewall"}}, Since: "0.4.0"},
		{Name: "tuning", Chain: []Conf{bridge(), tuning()}},
		{Name: "berth", Chain: []Conf{{"type": "berth", "ranges": []any{Conf{"subnet": net4}, Conf{"subnet": net6}}}}, Makes: true, Addrs: true},
	}
}

// file is the plugin of a configuration: an IPAM plugin is executed with the configuration of the plugin that
// delegates to it.
func (s Subject) file(c Conf) string {
	if c["type"] == "x" {
		return s.Name
	}
	name, _ := c["type"].(string)
	return name
}

func (set Set) has(s Subject) bool {
	for _, c := range s.Chain {
		if _, err := os.Stat(filepath.Join(set.Dir, s.file(c))); err != nil {
			return false
		}
	}
	return true
}

// Versions are those of the specification.
func Versions() []string {
	return []string{"0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"}
}

// versions are the subject's.
func (s Subject) versions() []string {
	var out []string
	for _, v := range Versions() {
		if v >= s.Since {
			out = append(out, v)
		}
	}
	return out
}
