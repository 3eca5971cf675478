package overlay

import (
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"

	"github.com/berth-project/berth/e2e/netcluster"
)

// pair is two pods on two nodes of the same agent, with a connection between them.
type pair struct {
	from, to *netcluster.NS
	addr     string
}

// plain attaches a pod without any plugin, the same way for both sides: what is compared is the way between nodes.
func plain(n *netcluster.Node, ip string, mtu int) (*netcluster.NS, error) {
	ns, err := netcluster.NewNS()
	if err != nil {
		return nil, err
	}
	const host = "02:00:00:00:99:01"
	pod := "02:00:00:00:99:02"
	dev := "pod" + ip[len(ip)-1:]
	return ns, errors.Join(
		n.Run(fmt.Sprintf("ip link add %s mtu %d address %s type veth peer name eth0 mtu %d address %s netns %s", dev, mtu, host, mtu, pod, ns.Path()),
			"ip link set "+dev+" up", "ip route add "+ip+"/32 dev "+dev, "ip neigh add "+ip+" lladdr "+pod+" dev "+dev),
		ns.Run("ip addr add "+ip+"/32 dev eth0", "ip link set eth0 up", "ip neigh add 169.254.1.1 lladdr "+host+" dev eth0",
			"ip route add 169.254.1.1 dev eth0 scope link", "ip route add default via 169.254.1.1"),
	)
}

// connect makes a connection between the pods.
func (p pair) connect() (client, server *net.TCPConn, err error) {
	var l *net.TCPListener
	if err := p.to.Do(func() (err error) { l, err = net.ListenTCP("tcp4", &net.TCPAddr{IP: net.ParseIP(p.addr)}); return err }); err != nil {
		return nil, nil, err
	}
	defer l.Close() //nolint:errcheck // one connection is all
	if err := l.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return nil, nil, err
	}
	to, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		return nil, nil, errors.New("no TCP address")
	}
	err = p.from.Do(func() (err error) { client, err = net.DialTCP("tcp4", nil, to); return err })
	if err != nil {
		return nil, nil, err
	}
	server, err = l.AcceptTCP()
	return client, server, err
}

// stream sends for d and returns bytes per second, and processor seconds for each GB, of both ends and what the kernel
// did in their name.
func (p pair) stream(d time.Duration) (rate, cpu float64, err error) {
	client, server, err := p.connect()
	if err != nil {
		return 0, 0, err
	}
	got := make(chan int64, 1)
	go func() {
		buf, n := make([]byte, 256<<10), int64(0)
		for {
			k, err := server.Read(buf)
			n += int64(k)
			if err != nil {
				got <- n
				return
			}
		}
	}()
	buf := make([]byte, 256<<10)
	before, start := processor(), time.Now()
	for time.Since(start) < d && err == nil {
		_, err = client.Write(buf)
	}
	err = errors.Join(err, client.Close())
	n := <-got
	took := time.Since(start).Seconds()
	used := processor() - before
	return float64(n) / took, used / float64(n) * 1e9, errors.Join(err, server.Close())
}

// answer sends a byte to and fro for d and returns the mean time of a round, in microseconds.
func (p pair) answer(d time.Duration) (float64, error) {
	client, server, err := p.connect()
	if err != nil {
		return 0, err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.CopyBuffer(struct{ io.Writer }{server}, struct{ io.Reader }{server}, make([]byte, 16)) // ends with the connection
	}()
	n, b, start := 0, []byte{0}, time.Now()
	for ; time.Since(start) < d && err == nil; n++ {
		if _, err = client.Write(b); err == nil {
			_, err = io.ReadFull(client, b)
		}
	}
	took := time.Since(start)
	err = errors.Join(err, client.Close())
	<-done
	return float64(took.Microseconds()) / float64(n), errors.Join(err, server.Close())
}

// processor is this process's processor time in seconds.
func processor() float64 {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return 0
	}
	return float64(r.Utime.Nano()+r.Stime.Nano()) / 1e9
}
