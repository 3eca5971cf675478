package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/berth-project/berth/e2e/bench/pods"
	"github.com/berth-project/berth/e2e/bench/report"
	"github.com/berth-project/berth/e2e/bench/rig"
)

// bursts starts many pods at once, and looks at memory while a hundred are there.
func (b *run) bursts(ctx context.Context) error {
	for _, kind := range []struct{ pods, rounds int }{{30, b.Rounds}, {100, b.Hundreds}} {
		up, down := map[string]report.Series{}, map[string]report.Series{}
		for round := range kind.rounds {
			for k := range 2 {
				side := b.stage.pair()[(k+round)%2]
				b.quiet(ctx)
				rate, gone, err := b.burst(ctx, side, pods.Shape{}, kind.pods, kind.pods == 100 && round == 0)
				if err != nil {
					return fmt.Errorf("%s: %w", side.Name, err)
				}
				up[side.Name] = append(up[side.Name], rate)
				down[side.Name] = append(down[side.Name], gone)
			}
			took, err := b.stage.floor.Burst(ctx, kind.pods)
			if err != nil {
				return err
			}
			up[kernel] = append(up[kernel], float64(kind.pods)/took.Seconds())
		}
		name := fmt.Sprintf("burst_%d_pods_per_s", kind.pods)
		b.report.Add(name, "pods/s", up[berth].P50(), up[containerd].P50())
		b.report.Add("floor_"+name, "pods/s", up[berth].P50(), up[kernel].P50())
		b.report.Add(fmt.Sprintf("removal_%d_pods_per_s", kind.pods), "pods/s", down[berth].P50(), down[containerd].P50())
	}
	b.memoryRows("")
	return nil
}

// idle is how long a hundred pods are left alone before they are weighed: garbage collectors return memory late.
const idle = 25 * time.Second

// burst starts and removes n pods of a shape and returns both rates.
func (b *run) burst(ctx context.Context, side *rig.Side, shape pods.Shape, n int, weigh bool) (up, down float64, err error) {
	var before weight
	if weigh {
		settle(ctx, idle)
		if before, err = weights(side); err != nil {
			return 0, 0, err
		}
	}
	crowd, took, err := b.stage.runners[side.Name].With(shape).Burst(ctx, fmt.Sprintf("burst-%d", n), n)
	if err == nil && weigh {
		settle(ctx, idle)
		var at weight
		if at, err = weights(side); err == nil {
			at.count, at.before = n, before.daemon
			b.weights[side.Name] = at
		}
	}
	gone, rerr := crowd.Remove(context.WithoutCancel(ctx))
	settle(ctx, time.Second)
	return float64(n) / took.Seconds(), float64(n) / gone.Seconds(), errors.Join(err, rerr)
}

// weight is memory in bytes of PSS.
type weight struct {
	all, daemon, pauses uint64
	before              uint64 // the daemon, idle and without pods
	count               int    // of pods
}

// perPod is what a pod costs in the runtime's own processes: all of them but the daemon as it is without pods. Shims
// that the pods before have left are no baseline: they are there because of pods.
func (w weight) perPod() float64 { return (float64(w.all) - float64(w.before)) / float64(w.count) }

func weights(side *rig.Side) (w weight, err error) {
	own, err := side.Runtime()
	if err != nil {
		return w, err
	}
	pauses, err := side.Pauses()
	if err != nil {
		return w, err
	}
	var errs [3]error
	w.all, errs[0] = rig.PSS(own)
	w.daemon, errs[1] = rig.PSS(side.Daemons())
	w.pauses, errs[2] = rig.PSS(pauses)
	return w, errors.Join(errs[:]...)
}

// memoryRows tells what was weighed last on both sides.
func (b *run) memoryRows(prefix string) {
	const kib = 1 << 10
	o, p := b.weights[berth], b.weights[containerd]
	if o.count == 0 || p.count == 0 {
		return
	}
	b.report.Add(prefix+"pss_per_pod", "KiB", o.perPod()/kib, p.perPod()/kib)
	shims := func(w weight) float64 { return float64(w.all-w.daemon) / float64(w.count) / kib }
	b.report.Add(prefix+"shim_pss_per_pod", "KiB", shims(o), shims(p))
	with := func(w weight) float64 { return (w.perPod() + float64(w.pauses)/float64(w.count)) / kib }
	b.report.Add(prefix+"pss_per_pod_with_pause", "KiB", with(o), with(p))
	b.report.Add(prefix+"daemon_pss", "MiB", float64(o.daemon)/kib/kib, float64(p.daemon)/kib/kib)
}

// lists times List and Stats at a thousand running containers, in ten pods. It is the last step: the cage ends them.
func (b *run) lists(ctx context.Context) error {
	want := 10 * b.Each
	for _, side := range b.stage.pair() {
		r := b.stage.runners[side.Name]
		crowd, err := r.Sandboxes(ctx, "list", 10)
		if err == nil {
			err = crowd.Fill(ctx, b.Each)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", side.Name, err)
		}
	}
	for _, what := range []struct {
		name string
		call func(*pods.Runner) (time.Duration, int, error)
	}{
		{"list_containers", func(r *pods.Runner) (time.Duration, int, error) { return r.List(ctx) }},
		{"list_stats", func(r *pods.Runner) (time.Duration, int, error) { return r.Stats(ctx) }},
	} {
		took := map[string]report.Series{}
		for i := range b.Samples {
			side := b.stage.pair()[i%2].Name
			for range 2 {
				d, n, err := what.call(b.stage.runners[side])
				if err != nil || n != want {
					return errors.Join(err, fmt.Errorf("%s: %s told %d containers, want %d", side, what.name, n, want))
				}
				took[side] = append(took[side], d.Seconds()*1000)
				settle(ctx, 20*time.Millisecond)
			}
		}
		b.report.Add(fmt.Sprintf("%s_%d_p50", what.name, want), "ms", took[berth].P50(), took[containerd].P50())
	}
	return nil
}
