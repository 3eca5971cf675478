package overlay

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/berth-project/berth/e2e/bench/rig"
	"github.com/berth-project/berth/e2e/netcluster"
)

// rest is how long an agent is left alone before its memory is read.
const rest = 4 * time.Second

// memory reads what the agents of the first nodes take.
func (r *run) memory(row string) error {
	time.Sleep(rest)
	var pss [2]float64
	for i, s := range r.sides() {
		n, err := rig.PSS([]int{s.a.Agent.Pid()})
		if err != nil {
			return err
		}
		pss[i] = float64(n) / (1 << 20)
	}
	r.out.Add(row, "MiB", pss[0], pss[1])
	return nil
}

// joins lets a node that has nothing join a cluster of many: from the agent's start until the kernel has a route to every
// other node. The others are objects with what flannel's agents write.
func (r *run) joins(ctx context.Context) error {
	r.say("joining %d nodes, %d times for each side", r.Fleet, r.Joins)
	if err := r.fleet(ctx); err != nil {
		return err
	}
	for i := range r.Joins {
		for j := range r.sides() {
			s := r.sides()[(i+j)%2]
			if err := r.join(s); err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
		}
	}
	r.out.Add("join_1000_seconds", "s", r.berth.took.P50(), r.peer.took.P50())
	r.out.Add("join_1000_memory", "MiB", r.berth.join.P50(), r.peer.join.P50())
	return nil
}

// fleet makes the Node objects, some at once.
func (r *run) fleet(ctx context.Context) error {
	var wg sync.WaitGroup
	work, errs := make(chan int), make(chan error, r.Fleet)
	for range 8 {
		wg.Go(func() {
			for i := range work {
				errs <- r.cluster.Create(ctx, fleetNode(i))
			}
		})
	}
	for i := len(r.cluster.Nodes) + 1; i <= r.Fleet; i++ {
		work <- i
	}
	close(work)
	wg.Wait()
	close(errs)
	var all []error
	for err := range errs {
		all = append(all, err)
	}
	return errors.Join(all...)
}

func (r *run) join(s *side) error {
	n := s.a
	for _, dev := range []string{"flannel.1", "berth.vx4"} {
		if out, err := n.Try("ip link del " + dev); err != nil && !strings.Contains(out, "Cannot find device") {
			return err
		}
	}
	if out, err := n.Try("ip route flush proto 184"); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	for _, left := range []string{"lib", "net.d", "subnet.env"} {
		if err := os.RemoveAll(filepath.Join(n.Dir, left)); err != nil {
			return err
		}
	}
	start := time.Now()
	if err := s.start(n, "vxlan"); err != nil {
		return err
	}
	// Of the other side's nodes flannel may or may not have heard: the fleet is what counts.
	if err := netcluster.Await(3*time.Minute, func() error { return n.Routes(r.Fleet - len(r.cluster.Nodes)) }); err != nil {
		return err
	}
	s.took = append(s.took, time.Since(start).Seconds())
	time.Sleep(rest)
	pss, err := rig.PSS([]int{n.Agent.Pid()})
	s.join = append(s.join, float64(pss)/(1<<20))
	r.say("  %-8s %.2f s, %.1f MiB", s.name, s.took[len(s.took)-1], s.join[len(s.join)-1])
	return errors.Join(err, n.StopAgent())
}

// mac is a random unicast address of our own.
func mac() string {
	var b [5]byte
	_, _ = rand.Read(b[:]) // never fails
	return fmt.Sprintf("02:%02x:%02x:%02x:%02x:%02x", b[0], b[1], b[2], b[3], b[4])
}
