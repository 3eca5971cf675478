package bench

import (
	"context"
	"fmt"

	"github.com/berth-project/berth/e2e/bench/pods"
	"github.com/berth-project/berth/e2e/bench/report"
	"github.com/berth-project/berth/e2e/bench/rig"
)

// standing is how many pods run meanwhile in the crowded condition, on each side, and abreast how many are started at once.
const (
	standing = 500
	abreast  = 20
)

// userns is everything again with hostUsers: false on both sides.
func (b *run) userns(ctx context.Context) error {
	shape := pods.Shape{Userns: true}
	if err := b.livesUnder(ctx, "userns_", shape); err != nil {
		return err
	}
	return b.burstsUnder(ctx, "userns_", shape, true)
}

// crowded is everything again with 500 pods running on each side: on the host's network, which costs the peer least.
func (b *run) crowded(ctx context.Context) error {
	var crowds []*pods.Crowd
	for _, side := range b.stage.pair() {
		c, err := b.gather(ctx, side)
		crowds = append(crowds, c)
		if err != nil {
			return fmt.Errorf("%s: %w", side.Name, err)
		}
	}
	b.memoryRows("crowded_")
	if err := b.livesUnder(ctx, "crowded_", pods.Shape{}); err != nil {
		return err
	}
	if err := b.burstsUnder(ctx, "crowded_", pods.Shape{}, false); err != nil {
		return err
	}
	for _, c := range crowds {
		if err := c.Leave(context.WithoutCancel(ctx), abreast); err != nil {
			return err
		}
	}
	return nil
}

// gather starts the pods that stay, and weighs what they cost.
func (b *run) gather(ctx context.Context, side *rig.Side) (*pods.Crowd, error) {
	settle(ctx, idle)
	before, err := weights(side)
	if err != nil {
		return nil, err
	}
	c, took, err := b.stage.runners[side.Name].With(pods.Shape{HostNetwork: true}).Gather(ctx, "stay", standing, abreast)
	if err != nil {
		return c, err
	}
	fmt.Printf("         %s: %d pods in %.0f s\n", side.Name, standing, took.Seconds())
	settle(ctx, idle)
	w, err := weights(side)
	w.count, w.before = standing, before.daemon
	b.weights[side.Name] = w
	return c, err
}

// livesUnder is the sequence of the two sides, interleaved, in a condition.
func (b *run) livesUnder(ctx context.Context, prefix string, shape pods.Shape) error {
	took := map[string]map[string]report.Series{}
	for i := -1; i < b.Samples; i++ { // the first one warms up
		b.quiet(ctx)
		for k := range 2 {
			side := b.stage.pair()[(k+i+1)%2].Name
			t, err := b.stage.runners[side].With(shape).Life(ctx, fmt.Sprintf("%s%d", prefix, i+1))
			if err != nil {
				return fmt.Errorf("%s: %w", side, err)
			}
			if i >= 0 {
				collect(took, side, t)
			}
			settle(ctx, pause)
		}
	}
	for _, step := range pods.Steps() {
		b.report.AddQuantiles(prefix+step, "ms", took[berth][step], took[containerd][step])
	}
	return nil
}

// burstsUnder is the bursts of 100 of the two sides in a condition. The last one is weighed: what a daemon keeps of its
// first such burst is no pod's.
func (b *run) burstsUnder(ctx context.Context, prefix string, shape pods.Shape, weigh bool) error {
	const size = 100
	up := map[string]report.Series{}
	for round := range b.Hundreds {
		for k := range 2 {
			side := b.stage.pair()[(k+round)%2]
			b.quiet(ctx)
			rate, _, err := b.burst(ctx, side, shape, size, weigh && round == b.Hundreds-1)
			if err != nil {
				return fmt.Errorf("%s: %w", side.Name, err)
			}
			up[side.Name] = append(up[side.Name], rate)
		}
	}
	b.report.Add(fmt.Sprintf("%sburst_%d_pods_per_s", prefix, size), "pods/s", up[berth].P50(), up[containerd].P50())
	if weigh {
		b.memoryRows(prefix)
	}
	return nil
}
