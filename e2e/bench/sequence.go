package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/e2e/bench/floor"
	"github.com/berth-project/berth/e2e/bench/pods"
	"github.com/berth-project/berth/e2e/bench/privilege"
	"github.com/berth-project/berth/e2e/bench/report"
	"github.com/berth-project/berth/e2e/bench/rig"
	"github.com/berth-project/berth/e2e/bench/trace"
)

const kernel = "floor"

func networkReady(ctx context.Context, side *rig.Side) error {
	resp, err := side.Client.Runtime.Status(ctx, &cri.StatusRequest{})
	if err != nil {
		return err
	}
	for _, c := range resp.GetStatus().GetConditions() {
		if !c.GetStatus() && (c.GetType() == cri.RuntimeReady || c.GetType() == cri.NetworkReady) {
			return fmt.Errorf("%s: %s: %s", side.Name, c.GetType(), c.GetMessage())
		}
	}
	return nil
}

// privileges fails if a container of one side may do what the other side's may not.
func (b *run) privileges(ctx context.Context) error {
	facts := map[string]privilege.Facts{}
	for _, side := range b.stage.pair() {
		text, err := b.stage.runners[side.Name].Output(ctx, "probe", "/bin/probe")
		if err != nil {
			return fmt.Errorf("%s: %w", side.Name, err)
		}
		if err := errors.Join(os.MkdirAll(b.Out, 0o755), os.WriteFile(filepath.Join(b.Out, "probe."+side.Name), []byte(text), 0o644)); err != nil {
			return err
		}
		if facts[side.Name], err = privilege.Parse(text); err != nil {
			return fmt.Errorf("%s: %w", side.Name, err)
		}
	}
	lines := privilege.Compare(facts[berth], facts[containerd])
	privilege.Print(os.Stdout, lines)
	for name, f := range facts { // the bars are to hold under RuntimeDefault, so it has to be in force
		if f["Seccomp"] != "2" {
			return fmt.Errorf("%s: a container of profile RuntimeDefault has seccomp mode %q, want 2, a filter", name, f["Seccomp"])
		}
	}
	if bad := privilege.Bad(lines); len(bad) > 0 {
		return fmt.Errorf("the sides do not do the same: %d privileges differ, the first is %q: berth %q, containerd %q", len(bad), bad[0].Name, bad[0].Berth, bad[0].Peer)
	}
	return nil
}

// sequence times pods' lives, one after the other; who comes first changes with every sample.
func (b *run) sequence(ctx context.Context) error {
	took := map[string]map[string]report.Series{}
	before := map[string]time.Duration{}
	for i := -1; i < b.Samples; i++ { // the first one warms up
		b.quiet(ctx)
		for k := range len(b.stage.sides) + 1 {
			name, t, err := b.sample(ctx, (k+i+1)%(len(b.stage.sides)+1), i+1)
			if err != nil {
				return err
			}
			if i >= 0 {
				collect(took, name, t)
			}
			settle(ctx, pause)
		}
		if i < 0 {
			if err := b.cpu(before); err != nil {
				return err
			}
		}
	}
	after := map[string]time.Duration{}
	if err := b.cpu(after); err != nil {
		return err
	}
	b.sequenceRows(took)
	used := func(side string) float64 { return (after[side] - before[side]).Seconds() / float64(b.Samples) }
	b.report.Add("cpu_seconds_per_pod", "s", used(berth), used(containerd))
	b.report.Add("cpu_seconds_per_pod_shared_cni", "s", used(berthUpstream), used(containerd))
	return nil
}

// pause is what one pod's asynchronous teardown gets before the next one begins.
const pause = 100 * time.Millisecond

// collect adds a pod's times to its side's, in milliseconds.
func collect(took map[string]map[string]report.Series, side string, t pods.Times) {
	if took[side] == nil {
		took[side] = map[string]report.Series{}
	}
	for step, d := range t {
		took[side][step] = append(took[side][step], d.Seconds()*1000)
	}
}

// sample runs one pod on one side, or on the floor.
func (b *run) sample(ctx context.Context, k, i int) (string, pods.Times, error) {
	if k == len(b.stage.sides) {
		t, err := b.stage.floor.Pod()
		return kernel, t, err
	}
	name := b.stage.sides[k].Name
	t, err := b.stage.runners[name].Life(ctx, fmt.Sprintf("seq-%d", i))
	if err != nil {
		err = fmt.Errorf("%s: %w", name, err)
	}
	return name, t, err
}

func (b *run) cpu(to map[string]time.Duration) (err error) {
	for _, side := range b.stage.sides {
		if to[side.Name], err = side.CPU(); err != nil {
			return err
		}
	}
	return nil
}

func (b *run) sequenceRows(took map[string]map[string]report.Series) {
	for _, step := range pods.Steps() {
		b.report.AddQuantiles(step, "ms", took[berth][step], took[containerd][step])
	}
	for _, step := range []string{pods.RunPodSandbox, pods.StopPodSandbox, pods.RemovePodSandbox} {
		b.report.Add(step+"_shared_cni_p50", "ms", took[berthUpstream][step].P50(), took[containerd][step].P50())
	}
	for _, step := range floor.Steps() { // here the peer is the kernel
		b.report.Add("floor_"+step+"_p50", "ms", took[berth][step].P50(), took[kernel][step].P50())
	}
}

// calls counts programs and syncs in one pod's life, a second and later one.
func (b *run) calls(ctx context.Context) error {
	counts := map[string]trace.Counts{}
	for _, side := range b.stage.pair() {
		pids, err := side.Runtime()
		if err != nil {
			return err
		}
		counts[side.Name], err = trace.During(ctx, side.Lab.Run, pids, time.Second, func() error {
			_, err := b.stage.runners[side.Name].Life(ctx, "traced")
			return err
		})
		if err != nil {
			return fmt.Errorf("%s: %w", side.Name, err)
		}
	}
	b.report.Add("execs_per_pod", "", float64(counts[berth].Execs), float64(counts[containerd].Execs))
	b.report.Add("fsyncs_per_pod", "", float64(counts[berth].Syncs), float64(counts[containerd].Syncs))
	return nil
}
