package test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func eventually(t testing.TB, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it never happened")
		}
	}
}

func hostport(ip string, port int) string { return net.JoinHostPort(ip, fmt.Sprint(port)) }

// serve answers each TCP connection and each UDP datagram in the namespace with the peer's address as seen.
func (n *ns) serve(t testing.TB, port int) {
	t.Helper()
	for _, host := range []string{"0.0.0.0", "::"} {
		fam := map[string]string{"0.0.0.0": "4", "::": "6"}[host]
		err := n.Do(func() error {
			l, err := net.Listen("tcp"+fam, hostport(host, port))
			if err != nil {
				return err
			}
			u, err := net.ListenPacket("udp"+fam, hostport(host, port))
			if err != nil {
				return err
			}
			t.Cleanup(func() { _ = l.Close(); _ = u.Close() })
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					a, _, _ := net.SplitHostPort(c.RemoteAddr().String())
					_, _ = io.WriteString(c, a)
					_ = c.Close()
				}
			}()
			go func() {
				b := make([]byte, 100)
				for {
					_, from, err := u.ReadFrom(b)
					if err != nil {
						return
					}
					a, _, _ := net.SplitHostPort(from.String())
					_, _ = u.WriteTo([]byte(a), from)
				}
			}()
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// ask connects from the namespace and returns what the server saw; src may bind a source address.
func (n *ns) ask(network, src, dst string, port int) (seen string, err error) {
	err = n.Do(func() error {
		d := net.Dialer{Timeout: 700 * time.Millisecond}
		if src != "" {
			a := netip.MustParseAddr(src)
			d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(a, 0))
			if network == "udp" {
				d.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0))
			}
		}
		c, err := d.Dial(network, hostport(dst, port))
		if err != nil {
			return err
		}
		defer c.Close() //nolint:errcheck // test
		_ = c.SetDeadline(time.Now().Add(700 * time.Millisecond))
		if network == "udp" {
			if _, err := c.Write([]byte("?")); err != nil {
				return err
			}
		}
		b := make([]byte, 100)
		k, err := c.Read(b)
		seen = string(b[:k])
		return err
	})
	return seen, err
}

// expect asks and compares; want "-" means that no answer may come.
func expect(t *testing.T, what string, from *ns, network, dst string, port int, want string) {
	t.Helper()
	seen, err := from.ask(network, "", dst, port)
	for try := 0; err != nil && want != "-" && try < 4; try++ { // on a busy machine an answer takes longer than we wait
		seen, err = from.ask(network, "", dst, port)
	}
	if want == "-" {
		if err == nil {
			t.Errorf("%s: got an answer (seen as %s)", what, seen)
		}
		return
	}
	if err != nil {
		t.Errorf("%s: %v", what, err)
	} else if want != "" && seen != want {
		t.Errorf("%s: the server saw %s, want %s", what, seen, want)
	}
}

func TestTraffic(t *testing.T) {
	n := newNode(t)
	a, b := n.addPod(t, "a", dual), n.addPod(t, "b", dual)
	x := n.addPod(t, "x", dual+`,"masqueradeExclude":["192.0.2.0/24"]`)
	for _, s := range []*ns{a.ns, b.ns, n.ns, n.outside} {
		s.serve(t, 8000)
	}
	n.outside.sh(t, "ip route add 10.99.0.0/24 via "+nodeIP4)
	for _, network := range []string{"tcp", "udp"} {
		expect(t, network+" pod to pod", a.ns, network, b.v4, 8000, a.v4)
		expect(t, network+" pod to pod, IPv6", a.ns, network, b.v6, 8000, a.v6)
		expect(t, network+" node to pod", n.ns, network, a.v4, 8000, nodeIP4)
		expect(t, network+" node to pod, IPv6", n.ns, network, a.v6, 8000, nodeIP6)
		expect(t, network+" pod to node", a.ns, network, nodeIP4, 8000, a.v4)
		expect(t, network+" pod to node, IPv6", a.ns, network, nodeIP6, 8000, a.v6)
		expect(t, network+" outside to pod", n.outside, network, a.v4, 8000, outIP4)
		expect(t, network+" pod to outside, IPv6", a.ns, network, outIP6, 8000, nodeIP6)
		expect(t, network+" pod to itself", a.ns, network, a.v4, 8000, a.v4)
	}
	// The exclusion of one network holds for the node: pods of it are seen as themselves.
	expect(t, "pod to an excluded destination", x.ns, "tcp", outIP4, 8000, x.v4)
}

func TestMasquerade(t *testing.T) {
	n := newNode(t)
	a := n.addPod(t, "a", dual)
	n.outside.serve(t, 8000)
	expect(t, "pod to outside", a.ns, "tcp", outIP4, 8000, nodeIP4)
	expect(t, "pod to outside", a.ns, "udp", outIP6, 8000, nodeIP6)
	a.del(t)
	b := n.addPod(t, "b", dual+`,"ipMasq":false`)
	n.outside.sh(t, "ip route add 10.99.0.0/24 via "+nodeIP4)
	expect(t, "ipMasq false", b.ns, "tcp", outIP4, 8000, b.v4)
}

const ports = `,"runtimeConfig":{"portMappings":[
	{"hostPort":8080,"containerPort":80,"protocol":"tcp"},
	{"hostPort":5353,"containerPort":53,"protocol":"udp"},
	{"hostPort":9090,"containerPort":80,"protocol":"tcp","hostIP":"192.0.2.1"},
	{"hostPort":9999,"containerPort":9,"protocol":"sctp"}]}`

func TestHostPorts(t *testing.T) {
	n := newNode(t)
	n.sh(t, "ip addr add 192.0.2.9/24 dev up0")
	a, b := n.addPod(t, "a", dual+ports), n.addPod(t, "b", dual)
	a.serve(t, 80)
	a.serve(t, 53)
	n.outside.serve(t, 8080)
	expect(t, "outside", n.outside, "tcp", nodeIP4, 8080, outIP4)
	expect(t, "outside, second address", n.outside, "tcp", "192.0.2.9", 8080, outIP4)
	expect(t, "outside, IPv6", n.outside, "tcp", nodeIP6, 8080, outIP6)
	expect(t, "outside, UDP", n.outside, "udp", nodeIP4, 5353, outIP4)
	expect(t, "outside, UDP, IPv6", n.outside, "udp", nodeIP6, 5353, outIP6)
	expect(t, "host IP", n.outside, "tcp", nodeIP4, 9090, outIP4)
	expect(t, "not the host IP", n.outside, "tcp", "192.0.2.9", 9090, "-")
	expect(t, "node, own address", n.ns, "tcp", nodeIP4, 8080, nodeIP4)
	expect(t, "node, localhost", n.ns, "tcp", "127.0.0.1", 8080, "")
	expect(t, "node, localhost, UDP", n.ns, "udp", "127.0.0.1", 5353, "")
	if _, err := n.ask("tcp", "", "::1", 8080); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("[::1] is not served and must refuse at once: %v", err)
	}
	expect(t, "hairpin", a.ns, "tcp", nodeIP4, 8080, "")
	expect(t, "hairpin, UDP, IPv6", a.ns, "udp", nodeIP6, 5353, "")
	expect(t, "another pod", b.ns, "tcp", nodeIP4, 8080, b.v4)
	expect(t, "another pod, IPv6", b.ns, "tcp", nodeIP6, 8080, b.v6)
	// A destination that is not the node's own passes untouched (CVE-2025-67499).
	expect(t, "transit", b.ns, "tcp", outIP4, 8080, nodeIP4)
	if _, err := n.tryAdd(newNS(t), "c", n.conf("1.1.0", dual+ports), ""); code(err) != 100 || !strings.Contains(err.Error(), "host port 8080") {
		t.Errorf("second owner of a host port: %v", err)
	}
	expect(t, "the first owner, after the second was refused", n.outside, "tcp", nodeIP4, 8080, outIP4)
}

// TestHostIPFirst: a mapping of one address of the node comes before one of all, whoever was first.
func TestHostIPFirst(t *testing.T) {
	n := newNode(t)
	n.sh(t, "ip addr add 192.0.2.9/24 dev up0")
	const all = `,"runtimeConfig":{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}]}`
	const one = `,"runtimeConfig":{"portMappings":[{"hostPort":8080,"containerPort":81,"protocol":"tcp","hostIP":"192.0.2.9"}]}`
	a, b := n.addPod(t, "a", dual+all), n.addPod(t, "b", dual+one)
	a.serve(t, 80)
	expect(t, "all addresses", n.outside, "tcp", nodeIP4, 8080, outIP4)
	expect(t, "one address, whose pod does not listen", n.outside, "tcp", "192.0.2.9", 8080, "-")
	b.serve(t, 81)
	expect(t, "one address", n.outside, "tcp", "192.0.2.9", 8080, outIP4)
}

// TestUDPFlowMoves talks from one source port without pause while the host port's owner changes.
func TestUDPFlowMoves(t *testing.T) {
	n := newNode(t)
	const extra = dual + `,"runtimeConfig":{"portMappings":[{"hostPort":5353,"containerPort":53,"protocol":"udp"}]}`
	var c net.Conn
	if err := n.outside.Do(func() (err error) { c, err = net.Dial("udp", hostport(nodeIP4, 5353)); return err }); err != nil {
		t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // test
	talk := func() bool {
		_, _ = c.Write([]byte("?"))
		_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		_, err := c.Read(make([]byte, 100))
		return err == nil
	}
	if talk() {
		t.Fatal("an answer before there is a pod")
	}
	for i := range 2 {
		p := n.addPod(t, fmt.Sprint("p", i), extra)
		p.serve(t, 53)
		for try := 0; !talk(); try++ { // nor does it take so long as the flow's entry lives, which is 30 s
			if try == 20 {
				t.Fatalf("pod %d does not get the flow", i)
			}
		}
		p.del(t)
		if talk() {
			t.Errorf("pod %d answers after DEL", i)
		}
	}
}

// frame is a UDP packet with chosen addresses.
func frame(srcMAC, dstMAC [6]byte, src, dst string, port uint16) []byte {
	b := append(append(append([]byte{}, dstMAC[:]...), srcMAC[:]...), 0x08, 0x00)
	s, d := netip.MustParseAddr(src).As4(), netip.MustParseAddr(dst).As4()
	ip := []byte{0x45, 0, 0, 32, 0, 1, 0, 0, 64, 17, 0, 0, s[0], s[1], s[2], s[3], d[0], d[1], d[2], d[3]}
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(ip[i])<<8 | uint32(ip[i+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	ip[10], ip[11] = byte(^sum>>8), byte(^sum)
	udp := []byte{0x30, 0x39, byte(port >> 8), byte(port), 0, 12, 0, 0, 's', 'p', 'o', 'f'}
	return append(append(b, ip...), udp...)
}

// inject sends raw frames on eth0, as a container with CAP_NET_RAW can.
func (n *ns) inject(t *testing.T, frames ...[]byte) {
	t.Helper()
	err := n.Do(func() error {
		i, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd) //nolint:errcheck // test
		for _, f := range frames {
			if err := unix.Sendto(fd, f, 0, &unix.SockaddrLinklayer{Ifindex: i.Index, Halen: 6}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// sink returns a function that says how many datagrams arrived at an address of the namespace so far.
func (n *ns) sink(t *testing.T, addr string) func() int {
	t.Helper()
	var u net.PacketConn
	if err := n.Do(func() (err error) { u, err = net.ListenPacket("udp", addr); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = u.Close() })
	got := 0
	return func() int {
		b := make([]byte, 100)
		for {
			_ = u.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
			if _, _, err := u.ReadFrom(b); err != nil {
				return got
			}
			got++
		}
	}
}

func TestSpoofing(t *testing.T) {
	n := newNode(t)
	a, b := n.addPod(t, "a", dual+ports), n.addPod(t, "b", dual)
	host := [6]byte{0xee, 0xee, 0xee, 0xee, 0xee, 0xee}
	var mac [6]byte
	if err := a.Do(func() error {
		i, err := net.InterfaceByName("eth0")
		copy(mac[:], i.HardwareAddr)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	other := mac
	other[5] ^= 1
	world := n.sink(t, nodeIP4+":7000")
	private := n.sink(t, "127.0.0.1:7000")
	a.inject(t, frame(mac, host, a.v4, nodeIP4, 7000))
	if world() != 1 {
		t.Fatal("an honest packet did not arrive")
	}
	spoofs := map[string][]byte{
		"another pod's address": frame(mac, host, b.v4, nodeIP4, 7000),
		"the node's address":    frame(mac, host, nodeIP4, nodeIP4, 7000),
		"a foreign address":     frame(mac, host, outIP4, nodeIP4, 7000),
		"localhost's address":   frame(mac, host, "127.0.0.1", nodeIP4, 7000),
		"another MAC":           frame(other, host, a.v4, nodeIP4, 7000),
	}
	for what, f := range spoofs {
		a.inject(t, f)
		if world() != 1 {
			t.Errorf("a packet with %s arrived", what)
		}
	}
	// 127/8 of the node stays closed although the pod has a host port on localhost, even without nftables.
	loop := frame(mac, host, a.v4, "127.0.0.1", 7000)
	a.inject(t, loop)
	if private() != 0 {
		t.Error("127.0.0.1 of the node was reached")
	}
	n.sh(t, "nft flush ruleset")
	a.inject(t, loop)
	if private() != 0 {
		t.Error("127.0.0.1 of the node was reached after nft flush ruleset")
	}
	if _, err := n.run(call{verb: "STATUS", conf: n.conf("1.1.0", dual)}); err != nil {
		t.Fatal(err)
	}
	a.inject(t, spoofs["another pod's address"])
	if world() != 1 {
		t.Error("STATUS did not bring the guard back")
	}
}

func TestRouterAdvertisements(t *testing.T) {
	n := newNode(t)
	a := n.addPod(t, "a", dual)
	four := n.addPod(t, "four", `,"ranges":[{"subnet":"10.98.0.0/24"}]`)
	for _, c := range []struct{ path, want string }{
		{a.host + "/accept_ra", "0"}, {four.host + "/disable_ipv6", "1"},
	} {
		if got := strings.TrimSpace(n.sh(t, "cat /proc/sys/net/ipv6/conf/"+c.path)); got != c.want {
			t.Errorf("node %s = %s, want %s", c.path, got, c.want)
		}
	}
	if got := strings.TrimSpace(four.sh(t, "cat /proc/sys/net/ipv6/conf/eth0/disable_ipv6")); got != "1" {
		t.Errorf("a pod without an IPv6 range has disable_ipv6 = %s", got)
	}
	if got := strings.TrimSpace(a.sh(t, "cat /proc/sys/net/ipv6/conf/eth0/accept_ra")); got != "0" {
		t.Errorf("pod accept_ra = %s", got)
	}
}
