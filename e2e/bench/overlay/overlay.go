// Package overlay is `make bench-net`: berth-netd against flannel in one run, in one cluster, a sample of each in turn:
// what passes between pods of two nodes, what the agent takes of memory, and how long a node needs to join a thousand.
package overlay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/berth-project/berth/e2e/bench/report"
	"github.com/berth-project/berth/e2e/harness"
	"github.com/berth-project/berth/e2e/netcluster"
)

// Config says how much is measured.
type Config struct {
	Lab *harness.Lab
	// Rounds are samples of each side; Round is how long one takes.
	Rounds int
	Round  time.Duration
	// Joins are samples of joining; Fleet is the number of nodes that are there.
	Joins, Fleet int
	// Say gets what is being done.
	Say io.Writer
}

// Bars are what the agent is held to.
func Bars() []report.Bar {
	return []report.Bar{
		{Name: "vxlan_throughput", Limit: 0.95, AtLeast: true},
		{Name: "hostgw_throughput", Limit: 0.95, AtLeast: true},
		{Name: "vxlan_cpu_per_byte", Limit: 1},
		{Name: "vxlan_tcp_rr", Limit: 1},
		{Name: "agent_pss", Limit: 0.7},
		{Name: "join_1000_seconds", Limit: 0.5},
		{Name: "join_1000_memory", Limit: 0.5},
	}
}

// side is one agent on two nodes.
type side struct {
	name             string
	start            func(n *netcluster.Node, backend string) error
	a, b             *netcluster.Node
	rate, cpu, delay report.Series
	took, join       report.Series
}

type run struct {
	Config
	cluster      *netcluster.Cluster
	berth, peer  *side
	out          *report.Report
	podsPerPhase []*netcluster.NS
}

// Run measures everything. Nodes 1 and 2 are flannel's, 3 and 4 Berth's.
func Run(ctx context.Context, conf Config) (*report.Report, error) {
	c, err := netcluster.New(ctx, conf.Lab, 4)
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	r := &run{
		Config: conf, cluster: c, out: &report.Report{},
		peer: &side{name: "flannel", a: c.Nodes[0], b: c.Nodes[1], start: (*netcluster.Node).StartFlannel},
		berth: &side{name: "berth", a: c.Nodes[2], b: c.Nodes[3], start: func(n *netcluster.Node, backend string) error {
			return n.StartBerth(fmt.Sprintf("  flannelNetwork: [%q]\n  flannelBackend: %s\n", netcluster.Pods, backend))
		}},
	}
	err = errors.Join(r.phase("vxlan", 1450), r.phase("host-gw", 1500))
	if err == nil {
		err = r.joins(ctx)
	}
	return r.out, errors.Join(err, c.Close())
}

func (r *run) say(format string, args ...any) { _, _ = fmt.Fprintf(r.Say, format+"\n", args...) }

func (r *run) sides() []*side { return []*side{r.berth, r.peer} }

// phase measures the traffic of one backend.
func (r *run) phase(backend string, mtu int) error {
	r.say("%s: %d rounds of %s for each side", backend, r.Rounds, r.Round)
	pairs := map[*side]pair{}
	for _, s := range r.sides() {
		p, err := r.serve(s, backend, mtu)
		if err != nil {
			return fmt.Errorf("%s, %s: %w", s.name, backend, err)
		}
		pairs[s] = p
		s.rate, s.cpu, s.delay = nil, nil, nil
	}
	for i := range r.Rounds {
		for j := range r.sides() {
			s := r.sides()[(i+j)%2]
			if err := s.sample(pairs[s], r.Round); err != nil {
				return fmt.Errorf("%s, %s: %w", s.name, backend, err)
			}
		}
	}
	if backend == "vxlan" {
		r.out.Add("vxlan_throughput", "MB/s", r.berth.rate.P50()/1e6, r.peer.rate.P50()/1e6)
		r.out.Add("vxlan_cpu_per_byte", "s/GB", r.berth.cpu.P50(), r.peer.cpu.P50())
		r.out.Add("vxlan_tcp_rr", "us", r.berth.delay.P50(), r.peer.delay.P50())
		if err := r.memory("agent_pss"); err != nil {
			return err
		}
	} else {
		r.out.Add("hostgw_throughput", "MB/s", r.berth.rate.P50()/1e6, r.peer.rate.P50()/1e6)
	}
	for _, s := range r.sides() {
		if err := errors.Join(s.a.StopAgent(), s.b.StopAgent()); err != nil {
			return err
		}
	}
	for _, ns := range r.podsPerPhase {
		if err := ns.Close(); err != nil {
			return err
		}
	}
	r.podsPerPhase = nil
	return nil
}

// serve starts the agents of a side and makes its two pods.
func (r *run) serve(s *side, backend string, mtu int) (p pair, err error) {
	var ips [2]string
	for i, n := range []*netcluster.Node{s.a, s.b} {
		if err := s.start(n, backend); err != nil {
			return p, err
		}
		ips[i] = n.Block[:len(n.Block)-len("0/24")] + fmt.Sprint(mtu%7+2) // another pod for each backend
		ns, err := plain(n, ips[i], mtu)
		if err != nil {
			return p, err
		}
		r.podsPerPhase = append(r.podsPerPhase, ns)
		if i == 0 {
			p.from = ns
		} else {
			p.to, p.addr = ns, ips[i]
		}
	}
	return p, netcluster.Await(30*time.Second, func() error {
		_, err := p.from.Try("ping -n -c 1 -W 1 " + p.addr)
		return err
	})
}

func (s *side) sample(p pair, d time.Duration) error {
	rate, cpu, err := p.stream(d)
	if err != nil {
		return err
	}
	delay, err := p.answer(d / 2)
	s.rate, s.cpu, s.delay = append(s.rate, rate), append(s.cpu, cpu), append(s.delay, delay)
	return err
}
