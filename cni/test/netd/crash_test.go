package netd

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth/internal/failpoint"

	"github.com/berth-project/berth/cni/test/netlab"
)

// TestKilledAtEveryFailpoint: with connections open, the agent dies at each point of a change that takes a node away or
// brings it back and changes the MTU; the next one ends the change, and no connection notices.
func TestKilledAtEveryFailpoint(t *testing.T) {
	t.Parallel()
	l := newLab(t, "mode: vxlan", true, true, 3, true)
	n1 := l.nodes[0]
	p1, p2, p3 := n1.pod(""), l.nodes[1].pod(""), l.nodes[2].pod("")
	echo(t, p2.NS, 7000)
	within(t, "at the beginning", func() bool { return reachesNow(p1.NS, p2.v6, 100) && reachesNow(p1.NS, p2.v4, 100) })
	flows := []*flow{newFlow(t, p1.NS, p2.v4, 7000), newFlow(t, p1.NS, p2.v6, 7000)}
	points := 0
	for i, point := range failpoint.Names() {
		if !strings.HasPrefix(point, "netd.") {
			continue
		}
		points++
		n1.agent.Kill()
		l.change(i)
		n1.start(failpoint.Env + "=" + point + "=kill")
		if !n1.agent.Ended(ten) {
			t.Fatalf("%s was not met", point)
		}
		n1.start()
		within(t, "killed at "+point, func() bool { return l.settled(n1, p1, p3, i) })
	}
	if points < 12 {
		t.Errorf("only %d failpoints", points)
	}
	for _, f := range flows {
		if worst := f.end(t); worst > netlab.Within(time.Second) {
			t.Errorf("a connection stood still for %s", worst)
		}
	}
}

// change makes fabric number i: every other one lacks node 3 and has another MTU.
func (l *lab) change(i int) {
	l.hidden["n3"] = i%2 == 0
	l.pool = fmt.Sprintf("mode: vxlan, mtu: %d", 1300+i%2*100)
	l.write()
}

func (l *lab) settled(n1 *node, p1, p3 *pod, i int) bool {
	if !n1.conf(fmt.Sprintf(`"mtu": %d`, 1300+i%2*100)) {
		return false
	}
	if i%2 == 0 {
		return !strings.Contains(n1.ours(), "10.244.3.0")
	}
	return reachesNow(p1.NS, p3.v4, 100) && reachesNow(p1.NS, p3.v6, 100)
}

// TestKilledAtRandom: SIGKILL at any moment while the fabric changes. 200 times with BERTH_TORTURE=1.
func TestKilledAtRandom(t *testing.T) {
	t.Parallel()
	kills := 15
	if os.Getenv("BERTH_TORTURE") != "" {
		kills = 200
	}
	l := newLab(t, "mode: vxlan", true, true, 3, true)
	n1 := l.nodes[0]
	p1, p2, p3 := n1.pod(""), l.nodes[1].pod(""), l.nodes[2].pod("")
	echo(t, p2.NS, 7000)
	within(t, "at the beginning", func() bool { return reachesNow(p1.NS, p2.v6, 100) && reachesNow(p1.NS, p2.v4, 100) })
	flows := []*flow{newFlow(t, p1.NS, p2.v4, 7000), newFlow(t, p1.NS, p2.v6, 7000)}
	for i := range kills {
		l.change(i)
		time.Sleep(time.Duration(rand.IntN(60)) * time.Millisecond)
		n1.agent.Kill()
		n1.start()
	}
	l.change(kills)
	within(t, fmt.Sprintf("killed %d times", kills), func() bool { return l.settled(n1, p1, p3, kills) })
	var worst time.Duration
	for _, f := range flows {
		worst = max(worst, f.end(t))
	}
	t.Logf("%d kills, 0 connections reset, longest pause %s", kills, worst.Round(time.Millisecond))
}
