package shims

import (
	"context"
	"sync"
	"time"

	v1 "github.com/berth-project/berth/proto/shim/v1"
)

const (
	// handLimit bounds one adoption. A shim may hang in one, on a container's log that is on a dead file server, and take the
	// others.
	handLimit = 5 * time.Second
	// insistEvery is the longest pause between two offers of what a shim has not adopted. As long as it is nobody's the end of
	// its process is seen by the next offer only.
	insistEvery = 2 * time.Second
)

// handOver gives a new process all that its predecessor had, at once, and closes the copies. What it does not take it is
// offered again. The shim's life is held.
func (p *Pool) handOver(s *shim, pods map[string]*podEntry, containers map[string]*containerEntry) {
	var wg sync.WaitGroup
	hand := func(kind, id string, adopt func(context.Context) error) {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), handLimit)
			defer cancel()
			if err := adopt(ctx); err != nil {
				p.insist(s, kind, id, err)
			}
		})
	}
	for id, e := range pods {
		hand("pod", id, func(ctx context.Context) error {
			defer e.close()
			return s.adoptPod(ctx, id, e)
		})
	}
	wg.Wait() // a container belongs to a pod
	for id, e := range containers {
		if e.static.ID == "" {
			e.close()
			continue // SetStatic has it adopted
		}
		hand("container", id, func(ctx context.Context) error {
			defer e.close()
			return s.adoptContainer(ctx, e)
		})
	}
	wg.Wait()
}

// insist offers a shim again and again what it did not adopt, until it takes it or there is no need any more: the thing is
// gone, or another shim's. cause is why the first offer failed.
func (p *Pool) insist(s *shim, kind, id string, cause error) {
	offer := p.offerPod
	if kind == "container" {
		offer = p.offerContainer
	}
	key := kind + " " + id
	p.mu.Lock()
	p.insisting[key]++
	first := p.insisting[key] == 1
	p.mu.Unlock()
	if !first { // an earlier process of that shim had not taken it either
		return
	}
	p.log.Error(kind+" not adopted; it is offered again and again", kind, id, "shim", s.id, "error", cause)
	p.wg.Go(func() {
		for wait := 50 * time.Millisecond; ; wait = min(2*wait, insistEvery) {
			select {
			case <-p.stop:
				return
			case <-time.After(wait):
			}
			p.mu.Lock()
			asked := p.insisting[key]
			p.mu.Unlock()
			if over, err := offer(id); over && p.contented(key, asked) {
				p.log.Info(kind+" needs not be offered any more", kind, id, "error", err)
				return
			}
		}
	})
}

// contented ends the offers of a thing, unless it was refused once more since it was asked for the asked-th time.
func (p *Pool) contented(key string, asked int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.insisting[key] != asked {
		return false
	}
	delete(p.insisting, key)
	return true
}

// offerPod offers a pod to its shim, once. It says whether that is over.
func (p *Pool) offerPod(id string) (over bool, err error) {
	p.mu.Lock()
	e := p.pods[id]
	if e == nil || e.asked {
		p.mu.Unlock()
		return true, nil
	}
	c := e.copied()
	p.mu.Unlock()
	defer c.close()
	err = c.shim.offered(func(ctx context.Context) error { return c.shim.adoptPod(ctx, id, c) })
	return err == nil, err
}

// offerContainer offers a container to its shim, once. It says whether that is over. The end of one that no shim has is told
// from here.
func (p *Pool) offerContainer(id string) (over bool, err error) {
	p.mu.Lock()
	e := p.containers[id]
	if e == nil || e.exited {
		p.mu.Unlock()
		return true, nil
	}
	c := e.copied()
	p.mu.Unlock()
	defer c.close()
	err = c.shim.offered(func(ctx context.Context) error { return c.shim.adoptContainer(ctx, c) })
	if err == nil {
		return true, nil
	}
	if pidfd := c.handles[v1.HandlePidfd]; pidfd == nil || !readable(pidfd) {
		return false, err
	}
	x := p.ExitOf(id)
	for end := time.Now().Add(uncollected); x.Unknown && time.Now().Before(end) && !p.isClosed(); x = p.ExitOf(id) {
		time.Sleep(5 * time.Millisecond)
	}
	p.mu.Lock()
	known := p.containers[id] != e || e.exited
	e.exited = true
	p.mu.Unlock()
	if !known {
		p.exited(v1.Exited{Container: id, Exit: x})
	}
	return true, err
}

// offered makes one offer. A process that is being replaced is asked nothing: its successor is given everything.
func (s *shim) offered(adopt func(context.Context) error) error {
	s.life.RLock()
	defer s.life.RUnlock()
	ctx, cancel := context.WithTimeout(context.Background(), handLimit)
	defer cancel()
	return adopt(ctx)
}
