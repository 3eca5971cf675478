package soak

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	// lines is what a short pod says before it waits for its end.
	lines = 20
	// script says its lines, then sleeps until it is told to stop; goodbye is the last thing in its log.
	script = "trap 'echo goodbye; exit 7' TERM; i=0; while [ $i -lt 20 ]; do echo line $i; i=$((i+1)); done; sleep 600 & wait $!"
	// crowd bounds the pods that live at once: more would mean that the node cannot keep up.
	crowd = 100
	// lifeLimit is when a pod's life counts as stuck.
	lifeLimit = 3 * time.Minute
)

// pace starts pods at the rate until ctx ends, and waits for the last one's end.
func (n *node) pace(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, crowd)
	tick := time.NewTicker(time.Duration(float64(time.Second) / n.Rate))
	defer tick.Stop()
	for i := 0; ; i++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		select {
		case slots <- struct{}{}:
		default:
			n.tally.late.Add(1)
			continue
		}
		wg.Go(func() {
			defer func() { <-slots }()
			one, cancel := context.WithTimeout(context.WithoutCancel(ctx), lifeLimit)
			defer cancel()
			if err := n.live(one, fmt.Sprintf("p%d", i), mix(i)); err != nil {
				n.tally.fault("%v", err)
			}
		})
	}
}

// live is one pod's life, with what must be true in it. Whatever fails, the pod is removed.
func (n *node) live(ctx context.Context, name string, s sort) error {
	p := n.pod(name, s)
	err := p.run(ctx)
	if err == nil {
		err = p.work(ctx)
	}
	err = errors.Join(err, p.remove(context.WithoutCancel(ctx)))
	if err != nil {
		return fmt.Errorf("pod %s (%s): %w", name, s.name, err)
	}
	n.tally.lives.Add(1)
	return nil
}

func (p *pod) work(ctx context.Context) error {
	id, err := p.create(ctx, "main", script)
	if err != nil {
		return err
	}
	if err := p.n.client.StartContainer(ctx, id); err != nil {
		return err
	}
	for i := range p.sort.probes {
		if err := p.exec(ctx, id, fmt.Sprintf("probe-%d", i)); err != nil {
			return err
		}
	}
	if err := p.awaitLines(ctx); err != nil {
		return err
	}
	if err := p.n.client.StopContainer(ctx, id, 20*time.Second); err != nil {
		return err
	}
	st, err := p.n.client.ContainerStatus(ctx, id)
	if err != nil {
		return err
	}
	if st.GetState() != cri.ContainerState_CONTAINER_EXITED || st.GetExitCode() != 7 {
		return fmt.Errorf("stopped, it is %s with code %d (%s: %s), want 7", st.GetState(), st.GetExitCode(), st.GetReason(), st.GetMessage())
	}
	said, err := p.said()
	if err != nil {
		return err
	}
	if len(said) != lines+1 || said[lines] != "goodbye" {
		return fmt.Errorf("its log has %d lines and ends with %q, want %d and goodbye", len(said), said[len(said)-1:], lines+1)
	}
	p.n.tally.logLines.Add(int64(len(said)))
	return nil
}

// awaitLines returns when the pod has said all its lines, and so set its trap.
func (p *pod) awaitLines(ctx context.Context) error {
	for {
		said, err := p.said()
		if err == nil && len(said) >= lines {
			return nil
		}
		if !wait(ctx, 10*time.Millisecond) {
			return fmt.Errorf("it has said %d of %d lines: %w", len(said), lines, errors.Join(err, ctx.Err()))
		}
	}
}

// said is what the container has said, by its log: line 0, line 1 and so on, each once.
func (p *pod) said() ([]string, error) {
	b, err := os.ReadFile(p.config.GetLogDirectory() + "/main.log")
	if err != nil {
		return nil, err
	}
	var all []string
	for l := range strings.Lines(string(b)) {
		text, whole := payload(l)
		if !whole {
			break // it is being written
		}
		if i := len(all); i < lines && text != fmt.Sprintf("line %d", i) {
			return nil, fmt.Errorf("line %d of its log is %q", i, text)
		}
		all = append(all, text)
	}
	return all, nil
}

// payload is the text of a line in the CRI's log format; whole says that it is one, to its end.
func payload(line string) (text string, whole bool) {
	f := strings.SplitN(line, " ", 4)
	if len(f) < 4 || f[2] != "F" || !strings.HasSuffix(line, "\n") {
		return "", false
	}
	return strings.TrimSuffix(f[3], "\n"), true
}
