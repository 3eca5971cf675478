package netlab

import (
	"fmt"
	"testing"
)

// Switch is a namespace with a bridge.
type Switch struct {
	*NS
	ports int
}

// NewSwitch makes one.
func NewSwitch(t testing.TB) *Switch {
	t.Helper()
	s := &Switch{NS: New(t)}
	s.Run("ip link add br0 type bridge mcast_snooping 0", "ip link set br0 up")
	return s
}

// Port is one end of a cable, in a node.
type Port struct {
	Node *NS
	Dev  string
	sw   *Switch
	far  string
}

// Plug joins a namespace to the switch by a new interface with the given addresses.
func (s *Switch) Plug(n *NS, dev string, mtu int, addrs ...string) *Port {
	s.t.Helper()
	s.ports++
	p := &Port{Node: n, Dev: dev, sw: s, far: fmt.Sprintf("p%d", s.ports)}
	n.Run(fmt.Sprintf("ip link add %s mtu %d type veth peer name %s mtu %d netns %s", dev, mtu, p.far, mtu, s.Path()))
	s.Run("ip link set "+p.far+" master br0", "ip link set "+p.far+" up")
	for _, a := range addrs {
		p.Address(a)
	}
	n.Run("ip link set " + dev + " up")
	return p
}

// Address gives the port another address.
func (p *Port) Address(a string) {
	line := "ip addr add " + a + " dev " + p.Dev
	if six(a) {
		line += " nodad"
	}
	p.Node.Run(line)
}

func six(a string) bool {
	for _, c := range a {
		if c == ':' {
			return true
		}
	}
	return false
}

// Cut takes the carrier away, or gives it back.
func (p *Port) Cut(cut bool) {
	state := "up"
	if cut {
		state = "down"
	}
	p.sw.Run("ip link set " + p.far + " " + state)
}

// MTU changes that of both ends.
func (p *Port) MTU(mtu int) {
	p.sw.Run(fmt.Sprintf("ip link set %s mtu %d", p.far, mtu))
	p.Node.Run(fmt.Sprintf("ip link set %s mtu %d", p.Dev, mtu))
}

// NewRouter makes a namespace that forwards.
func NewRouter(t testing.TB) *NS {
	t.Helper()
	n := New(t)
	n.Sysctl("ipv4/ip_forward", "1")
	n.Sysctl("ipv6/conf/all/forwarding", "1")
	return n
}
