package conform

import (
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// serve answers on a port in a namespace with the peer's address, and then echoes.
func (n *Netns) serve(network string, port int) (io.Closer, error) {
	var c io.Closer
	addr := fmt.Sprintf(":%d", port)
	err := n.do(func() error {
		if network == "udp" {
			p, err := net.ListenPacket("udp", addr)
			if err != nil {
				return err
			}
			c = p
			go func() {
				b := make([]byte, 2048)
				for {
					_, from, err := p.ReadFrom(b)
					if err != nil {
						return
					}
					_, _ = p.WriteTo([]byte(host(from)), from)
				}
			}()
			return nil
		}
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return err
		}
		c = l
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					_, _ = fmt.Fprintf(conn, "%-40s", host(conn.RemoteAddr()))
					_, _ = io.Copy(conn, conn)
					_ = conn.Close()
				}()
			}
		}()
		return nil
	})
	return c, err
}

func host(a net.Addr) string {
	h, _, _ := net.SplitHostPort(a.String())
	return h
}

// ask connects from a namespace and returns whom the server saw; empty if there is no answer.
func (n *Netns) ask(network, addr string) (seen string) {
	_ = n.do(func() error {
		for range 2 { // the first packet may be lost to neighbour discovery
			conn, err := net.DialTimeout(network, addr, time.Second)
			if err != nil {
				continue
			}
			_ = conn.SetDeadline(time.Now().Add(time.Second))
			_, _ = conn.Write([]byte("who am I?"))
			b := make([]byte, 40)
			k, err := conn.Read(b)
			_ = conn.Close()
			if err == nil {
				_, _ = fmt.Sscan(string(b[:k]), &seen)
				return nil
			}
		}
		return errors.New("no answer")
	})
	return seen
}

// expect compares whom the server saw; "*" is anybody.
func (t *T) expect(what string, from *Netns, network, addr, want string) {
	if got := from.ask(network, addr); got != want && !(want == "*" && got != "") {
		t.Failf("%s: the server saw %q, want %q", what, got, want)
	}
}

func (t *T) serve(n *Netns, network string, port int) {
	c, err := n.serve(network, port)
	if err != nil {
		t.Fatalf("serve: %v", err)
	}
	_ = c // ends with the namespace
}

func (t *T) traffic() {
	a, b := t.attach("1.0.0", nil), t.attach("1.0.0", nil)
	ip := ipOf(a)
	t.serve(a.ns, "tcp", 80)
	t.serve(t.host.outside, "tcp", 90)
	t.expect("the host to the container", t.host.Netns, "tcp", net.JoinHostPort(ip, "80"), "*")
	t.expect("another container", b.ns, "tcp", net.JoinHostPort(ip, "80"), ipOf(b))
	t.expect("the container to the outside, masqueraded", a.ns, "tcp", net.JoinHostPort(outsideIP, "90"), hostIP)
	t.detach(a, nil)
	t.detach(b, nil)
}

func (t *T) hostPorts() {
	a := t.attach("1.0.0", nil)
	b, _ := t.base("1.0.0")
	t.serve(a.ns, "tcp", 80)
	t.serve(a.ns, "udp", 53)
	for _, c := range []struct {
		what string
		from *Netns
		net  string
		addr string
		want string
	}{
		{"from outside", t.host.outside, "tcp", hostIP + ":8080", outsideIP},
		{"from outside, UDP", t.host.outside, "udp", hostIP + ":8053", outsideIP},
		{"from the host", t.host.Netns, "tcp", hostIP + ":8080", "*"},
		{"from localhost", t.host.Netns, "tcp", "127.0.0.1:8080", "*"},
		{"from the container itself", a.ns, "tcp", hostIP + ":8080", "*"},
		{"from its neighbour on the bridge", b.ns, "tcp", hostIP + ":8080", "*"},
	} {
		t.expect(c.what, c.from, c.net, c.addr, c.want)
	}
	t.detach(a, nil)
	t.expect("from outside, after DEL", t.host.outside, "tcp", hostIP+":8080", "")
}

// transit sends what is for somebody behind the host to a port that the host serves.
func (t *T) transit() {
	a := t.attach("1.0.0", nil)
	b, _ := t.base("1.0.0")
	t.serve(a.ns, "tcp", 80)
	t.serve(b.ns, "tcp", 8080)
	if _, err := t.host.outside.sh("ip route add 10.77.0.0/24 via " + hostIP); err != nil {
		t.Fatalf("%v", err)
	}
	got := ""
	_ = t.host.outside.do(func() error {
		conn, err := net.DialTimeout("tcp", net.JoinHostPort(ipOf(b), "8080"), time.Second)
		if err != nil {
			return err
		}
		got = "connected"
		return conn.Close()
	})
	if got == "" {
		t.Failf("a packet in transit did not arrive")
	}
}

// limited sends 1.5 MB each way through 8 Mbit/s, which takes a second more than the burst.
func (t *T) limited() {
	a := t.attach("1.0.0", nil)
	t.serve(a.ns, "tcp", 80)
	const size = 1500000
	var took time.Duration
	err := t.host.do(func() error {
		conn, err := net.DialTimeout("tcp", net.JoinHostPort(ipOf(a), "80"), time.Second)
		if err != nil {
			return err
		}
		defer conn.Close() //nolint:errcheck // a test's client
		start := time.Now()
		go func() {
			b := make([]byte, 15000)
			for range size / len(b) {
				if _, err := conn.Write(b); err != nil {
					return
				}
			}
		}()
		_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
		if _, err := io.CopyN(io.Discard, conn, size); err != nil {
			return err
		}
		took = time.Since(start)
		return nil
	})
	if err != nil || took < time.Second || took > 20*time.Second {
		t.Failf("%d bytes there and back took %v, %v; want more than a second", size, took, err)
	}
}
