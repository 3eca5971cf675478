package bench

import (
	"context"
	"errors"
	"fmt"

	"github.com/berth-project/berth/e2e/bench/pods"
	"github.com/berth-project/berth/e2e/bench/report"
	"github.com/berth-project/berth/e2e/bench/rig"
)

// standing is how many pods run meanwhile in the crowded condition, abreast how many of them are started at once, and atOnce
// how many come on top, in every condition.
const (
	standing = 500
	abreast  = 20
	atOnce   = 100
)

// userns is everything again with hostUsers: false on both sides.
func (b *run) userns(ctx context.Context) error {
	shape := pods.Shape{Userns: true}
	if err := b.livesUnder(ctx, "userns_", shape); err != nil {
		return err
	}
	return b.burstsUnder(ctx, "userns_", shape)
}

// crowded is everything again on a node where 500 pods run, on the host's network, which costs the peer least. A node has
// one runtime: so each side has the crowd of its own and not the other's, by turns, twice each.
func (b *run) crowded(ctx context.Context) error {
	took, up := map[string]map[string]report.Series{}, map[string]report.Series{}
	for turn, k := range []int{0, 1, 1, 0} {
		side := b.stage.pair()[k]
		if err := b.amid(ctx, side, turn < 2, took, up); err != nil {
			return fmt.Errorf("%s: %w", side.Name, err)
		}
	}
	b.memoryRows("crowded_")
	b.lifeRows("crowded_", took)
	b.report.Add(fmt.Sprintf("crowded_burst_%d_pods_per_s", atOnce), "pods/s", up[berth].P50(), up[containerd].P50())
	return nil
}

// amid is half of one side's samples while its crowd runs.
func (b *run) amid(ctx context.Context, side *rig.Side, weigh bool, took map[string]map[string]report.Series, up map[string]report.Series) (err error) {
	c, err := b.gather(ctx, side, weigh)
	if c != nil {
		defer func() { err = errors.Join(err, c.Leave(context.WithoutCancel(ctx), abreast)) }()
	}
	if err != nil {
		return err
	}
	for i := -1; i < (b.Samples+1)/2; i++ { // the first one warms up
		b.quiet(ctx)
		t, err := b.stage.runners[side.Name].Life(ctx, fmt.Sprintf("crowded-%d", i+1))
		if err != nil {
			return err
		}
		if i >= 0 {
			collect(took, side.Name, t)
		}
		settle(ctx, pause)
	}
	for range (b.Hundreds + 1) / 2 {
		b.quiet(ctx)
		rate, _, err := b.burst(ctx, side, pods.Shape{}, atOnce, false)
		if err != nil {
			return err
		}
		up[side.Name] = append(up[side.Name], rate)
	}
	return nil
}

// gather starts the pods that stay, and weighs what they cost if it is asked to.
func (b *run) gather(ctx context.Context, side *rig.Side, weigh bool) (c *pods.Crowd, err error) {
	var before weight
	if weigh {
		settle(ctx, idle)
		if before, err = weights(side); err != nil {
			return nil, err
		}
	}
	c, took, err := b.stage.runners[side.Name].With(pods.Shape{HostNetwork: true}).Gather(ctx, "stay", standing, abreast)
	if err != nil {
		return c, err
	}
	fmt.Printf("         %s: %d pods in %.0f s\n", side.Name, standing, took.Seconds())
	settle(ctx, idle)
	if !weigh {
		return c, nil
	}
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
	b.lifeRows(prefix, took)
	return nil
}

// lifeRows tells what a life took on both sides.
func (b *run) lifeRows(prefix string, took map[string]map[string]report.Series) {
	for _, step := range pods.Steps() {
		b.report.AddQuantiles(prefix+step, "ms", took[berth][step], took[containerd][step])
	}
}

// burstsUnder is the bursts of the two sides with user namespaces or another shape. The last one is weighed: what a daemon
// keeps of its first such burst is no pod's.
func (b *run) burstsUnder(ctx context.Context, prefix string, shape pods.Shape) error {
	up := map[string]report.Series{}
	for round := range b.Hundreds {
		for k := range 2 {
			side := b.stage.pair()[(k+round)%2]
			b.quiet(ctx)
			rate, _, err := b.burst(ctx, side, shape, atOnce, round == b.Hundreds-1)
			if err != nil {
				return fmt.Errorf("%s: %w", side.Name, err)
			}
			up[side.Name] = append(up[side.Name], rate)
		}
	}
	b.report.Add(fmt.Sprintf("%sburst_%d_pods_per_s", prefix, atOnce), "pods/s", up[berth].P50(), up[containerd].P50())
	b.memoryRows(prefix)
	return nil
}
