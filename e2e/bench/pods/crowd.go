package pods

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Crowd is many pods on one runtime.
type Crowd struct {
	r    *Runner
	pods []*pod
}

// Burst starts n pods with a container each, all at once, and says how long it took until every one ran. The crowd
// holds what came into being even if some did not.
func (r *Runner) Burst(ctx context.Context, prefix string, n int) (*Crowd, time.Duration, error) {
	c := &Crowd{r: r}
	for i := range n {
		p, err := r.prepare(fmt.Sprintf("%s-%d", prefix, i))
		if err != nil {
			return c, 0, err
		}
		c.pods = append(c.pods, p)
	}
	start := time.Now()
	err := c.each(func(p *pod) error {
		if err := r.run(ctx, p); err != nil {
			return p.errorf(RunPodSandbox, err)
		}
		if err := r.start(ctx, p, "c", "/bin/wait"); err != nil {
			return p.errorf(StartContainer, err)
		}
		return nil
	})
	return c, time.Since(start), err
}

// Gather starts n pods with a container each, abreast of them at a time, and says how long that took.
func (r *Runner) Gather(ctx context.Context, prefix string, n, abreast int) (*Crowd, time.Duration, error) {
	all, start := &Crowd{r: r}, time.Now()
	for len(all.pods) < n {
		c, _, err := r.Burst(ctx, fmt.Sprintf("%s-%d", prefix, len(all.pods)), min(abreast, n-len(all.pods)))
		all.pods = append(all.pods, c.pods...)
		if err != nil {
			return all, time.Since(start), err
		}
	}
	return all, time.Since(start), nil
}

// Leave removes all pods, abreast of them at a time.
func (c *Crowd) Leave(ctx context.Context, abreast int) error {
	for len(c.pods) > 0 {
		some := &Crowd{r: c.r, pods: c.pods[:min(abreast, len(c.pods))]}
		c.pods = c.pods[len(some.pods):]
		if _, err := some.Remove(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Sandboxes makes n pods without containers, one after the other.
func (r *Runner) Sandboxes(ctx context.Context, prefix string, n int) (*Crowd, error) {
	c := &Crowd{r: r}
	for i := range n {
		p, err := r.prepare(fmt.Sprintf("%s-%d", prefix, i))
		if err != nil {
			return c, err
		}
		c.pods = append(c.pods, p)
		if err := r.run(ctx, p); err != nil {
			return c, p.errorf(RunPodSandbox, err)
		}
	}
	return c, nil
}

// Fill starts each more containers in every pod, pods side by side, and waits until all run.
func (c *Crowd) Fill(ctx context.Context, each int) error {
	return c.each(func(p *pod) error {
		for i := range each {
			if err := c.r.start(ctx, p, fmt.Sprintf("more-%d", i), "/bin/wait"); err != nil {
				return p.errorf(StartContainer, err)
			}
		}
		return nil
	})
}

// Remove stops and removes every pod, all at once, and says how long that took.
func (c *Crowd) Remove(ctx context.Context) (time.Duration, error) {
	start := time.Now()
	err := c.each(func(p *pod) error {
		if p.id == "" {
			return nil
		}
		return c.r.remove(ctx, p)
	})
	took := time.Since(start)
	for _, p := range c.pods {
		err = errors.Join(err, p.clean())
	}
	return took, err
}

func (c *Crowd) each(do func(*pod) error) error {
	errs := make([]error, len(c.pods))
	var wg sync.WaitGroup
	for i, p := range c.pods {
		wg.Go(func() { errs[i] = do(p) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// List times one ListContainers and returns how many there were.
func (r *Runner) List(ctx context.Context) (time.Duration, int, error) {
	start := time.Now()
	resp, err := r.Client.Runtime.ListContainers(ctx, &cri.ListContainersRequest{})
	return time.Since(start), len(resp.GetContainers()), err
}

// Stats times one ListContainerStats and returns of how many containers it told the memory.
func (r *Runner) Stats(ctx context.Context) (time.Duration, int, error) {
	start := time.Now()
	resp, err := r.Client.Runtime.ListContainerStats(ctx, &cri.ListContainerStatsRequest{})
	took, n := time.Since(start), 0
	for _, s := range resp.GetStats() {
		if s.GetMemory().GetWorkingSetBytes().GetValue() > 0 {
			n++
		}
	}
	return took, n, err
}
