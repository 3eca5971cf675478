package bgp

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	berth "github.com/berth-project/berth/cni/internal/bgp"
)

// rawPeers speak at once, each its share of the mutations.
const rawPeers = 48

// mutations of a message: at every offset, or every stride-th, other bytes; and every shorter length, with the header
// saying so and not.
func mutations(msg []byte, stride int) (out [][]byte) {
	for i := 0; i < len(msg); i += stride {
		for _, b := range []byte{0, 0xff, msg[i] ^ 0x80, msg[i] + 1, msg[i] - 1} {
			m := bytes.Clone(msg) // as it was, if that byte is what it was: so their number depends on the length alone
			m[i] = b
			out = append(out, m)
		}
		if i >= 19 {
			out = append(out, message(msg[18], msg[19:i]), join(message(msg[18], msg[19:i]), []byte{0xff}))
		}
	}
	return out
}

// TestMalformed is every kind of message, mutated at every offset, from peers that otherwise behave. The agent must go
// on, and so must the routes of a peer that has nothing to do with it; a child that dies is replaced. At the end every
// raw peer is taken back.
func TestMalformed(t *testing.T) {
	t.Parallel()
	l := newLab(t, 3)
	hostile, good := l[1], l[2]
	stride := 1
	if !whole() {
		stride = 29
	}
	d := &bird{}
	d.start(t, far{at: good, asn: 64600, gr: 60, sessions: []farSession{{us: l[0].v4, local: good.v4, asn: 64512, families: []berth.Family{berth.IPv4}}}, routes: []farRoute{{prefix: "10.244.3.0/24"}}})
	c := ourConfig(l[0], berth.Peer{Address: good.v4, ASN: 64600, ConnectRetry: time.Second})
	c.Restart.Time = 60 * time.Second
	c.Restart.Deferral = time.Second
	l[0].sh(t, "ip addr add 10.1.0.1/16 dev eth0")
	c.Listen = append(c.Listen, ip("10.1.0.1"))
	var raws []*rawPeer
	for i := range rawPeers {
		a := netip.AddrFrom4([4]byte{10, 1, 1, byte(i + 1)})
		hostile.sh(t, "ip addr add "+a.String()+"/16 dev eth0")
		asn := uint32(65000 + i)
		raws = append(raws, &rawPeer{at: hostile, local: a, us: ip("10.1.0.1"), asn: asn})
		c.Peers = append(c.Peers, berth.Peer{Address: a, ASN: asn, Passive: true, ConnectRetry: time.Second, AddPathsReceive: i%4 == 3})
	}
	u := startUs(t, l[0], c, nil)
	eventually(t, 20*time.Second, u.has("10.244.3.0/24", good.v4))
	missing := watchUs(u, "10.244.3.0/24")
	sent, ended := attack(t, raws, stride)
	restarts := u.Status().Restarts
	for _, line := range strings.Split(u.log.String(), "\n") {
		if strings.Contains(line, "died") || strings.Contains(line, "panic") {
			t.Log(line)
		}
	}
	for i, r := range raws {
		eventually(t, 20*time.Second, func() error {
			r.close()
			if err := r.connect(openMessage(r.asn, r.local)); err != nil {
				return err
			}
			// The session may still be ended for what was the last message of the one before.
			if err := r.send(join(plainUpdate(r.asn, r.local, 24, 10, 244, byte(100+i)), message(msgKeepalive, nil))); err != nil {
				return err
			}
			return await(time.Second, u.has(fmt.Sprintf("10.244.%d.0/24", 100+i), r.local))
		})
	}
	noneMissing(t, "we", missing)
	for _, r := range raws {
		r.close()
	}
	t.Logf("%d mutated messages, %d of them ended their session; the child died %d times", sent, ended, restarts)
	if restarts > 0 {
		t.Logf("why it died last: %s", u.Status().LastDeath)
	}
}

// attack sends every mutation from one of the raw peers and counts.
func attack(t *testing.T, raws []*rawPeer, stride int) (sent, ended int64) {
	t.Helper()
	type shot struct{ open, msg []byte }
	queue := make(chan func(r *rawPeer) shot)
	var wg sync.WaitGroup
	var n, dead atomic.Int64
	for _, r := range raws {
		wg.Go(func() {
			up := false
			for f := range queue {
				s := f(r)
				if s.open != nil || !up {
					r.close()
					open := s.open
					if open == nil {
						open = openMessage(r.asn, r.local)
					}
					up = reconnect(r, open, s.open != nil)
				}
				n.Add(1)
				if s.msg != nil && up {
					up = r.send(s.msg) == nil && r.digested() == nil
				}
				if !up {
					dead.Add(1)
				}
			}
			r.close()
		})
	}
	// The messages are the peer's own; so is where they are mutated, which depends on the length alone.
	model := raws[0]
	for _, make := range []func(r *rawPeer) []byte{
		func(r *rawPeer) []byte { return richUpdate(r.asn, r.local) },
		func(r *rawPeer) []byte { return plainUpdate(r.asn, r.local, 24, 10, 244, 200) },
		func(*rawPeer) []byte { return message(msgRefresh, []byte{0, 1, 0, 1}) },
		func(*rawPeer) []byte { return message(msgNotification, []byte{6, 2, 3, 'b', 'y', 'e'}) },
	} {
		for i := range mutations(make(model), stride) {
			queue <- func(r *rawPeer) shot { return shot{msg: mutations(make(r), stride)[i]} }
		}
	}
	for i := range mutations(openMessage(model.asn, model.local), stride*2) {
		queue <- func(r *rawPeer) shot { return shot{open: mutations(openMessage(r.asn, r.local), stride*2)[i]} }
	}
	close(queue)
	wg.Wait()
	return n.Load(), dead.Load()
}

// reconnect tries until it is let in, as the idle time after an error ends, or once if open is mutated.
func reconnect(r *rawPeer, open []byte, mutated bool) bool {
	for range 60 {
		if r.connect(open) == nil {
			return true
		}
		r.close()
		if mutated {
			return false
		}
		time.Sleep(100 * time.Millisecond)
	}
	return false
}
