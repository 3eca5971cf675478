// Package stats measures pods and containers: cgroup files, a network namespace's counters, a writable layer's
// size. It reads only, and never a tree of files inside a request: sizes come from a background sampler.
package stats

import (
	"context"
	"log/slog"
	"math"
	"sync"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/cri/internal/cgroup"
	"github.com/berth-project/berth/cri/internal/pod"
)

const (
	// cpuWindow is the least distance of two readings that give a rate.
	cpuWindow = time.Second
	// sampleEvery is how often rates and layer sizes are refreshed in the background.
	sampleEvery = 10 * time.Second
	// glance is how many files of a layer that no sample has met yet are looked at inside a request: those of a young
	// container. After a daemon's restart an old one's size is told from the first sample on.
	glance = 500
	// few is how many files a layer may hold to be measured with all others, one after the other; those of larger ones
	// wait for each other alone.
	few = 20_000
)

// Collector measures. Make it with New; Run keeps rates and sizes fresh.
type Collector struct {
	pods   *pod.Manager
	groups *cgroup.Layout
	fsID   string
	log    *slog.Logger

	mu    sync.Mutex
	rates map[string]rate
	sizes map[string]size
}

type rate struct {
	usage uint64
	at    time.Time
	cores uint64 // nanocores
}

type size struct {
	bytes, inodes uint64
	at            time.Time
}

// New makes a collector; fsID is the mount point that writable layers are on.
func New(pods *pod.Manager, groups *cgroup.Layout, fsID string, log *slog.Logger) *Collector {
	return &Collector{pods: pods, groups: groups, fsID: fsID, log: log, rates: map[string]rate{}, sizes: map[string]size{}}
}

// Run samples until ctx ends.
func (c *Collector) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	large := make(chan []string, 1)
	wg.Go(func() { // one tenant's million files delay nobody else's sizes
		for {
			select {
			case ids := <-large:
				for _, id := range ids {
					c.measure(ctx, id, math.MaxInt)
				}
			case <-ctx.Done():
				return
			}
		}
	})
	t := time.NewTicker(sampleEvery)
	defer t.Stop()
	for {
		if ids := c.sample(ctx); len(ids) > 0 {
			select {
			case large <- ids:
			default: // the last ones still take their time
			}
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// sample refreshes rates, and the sizes of layers that hold few files; it returns the containers of the others.
func (c *Collector) sample(ctx context.Context) (large []string) {
	live := map[string]bool{}
	for _, ct := range c.pods.Containers() {
		live[ct.ID] = true
		if ct.State().CRI() != cri.ContainerState_CONTAINER_RUNNING || ctx.Err() != nil {
			continue
		}
		if g, err := c.pods.Group(ct); err == nil {
			if s, err := c.groups.Read(g); err == nil {
				c.nanoCores(ct.ID, s.CPUUsage, time.Now())
			}
		}
		if known, ok := c.known(ct.ID); ok && known.inodes > few {
			large = append(large, ct.ID)
		} else if _, all := c.measure(ctx, ct.ID, few); !all {
			large = append(large, ct.ID)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for id := range c.sizes {
		if !live[id] {
			delete(c.sizes, id)
		}
	}
	for id := range c.rates {
		if !live[id] && c.rates[id].at.Before(time.Now().Add(-time.Hour)) {
			delete(c.rates, id)
		}
	}
	return large
}

// measure walks a writable layer, which holds only what its container wrote. It says whether there were no more files than
// most and ctx has not ended; else nothing is known.
func (c *Collector) measure(ctx context.Context, id string, most int) (size, bool) {
	s, complete := walk(ctx, c.pods.WritableLayer(id), most)
	if !complete {
		return size{}, false
	}
	s.at = time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sizes[id] = s
	return s, true
}

func (c *Collector) known(id string) (size, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, ok := c.sizes[id]
	return s, ok
}

// layer is the size of a writable layer, if it is known.
func (c *Collector) layer(id string) (size, bool) {
	if s, ok := c.known(id); ok {
		return s, true
	}
	return c.measure(context.Background(), id, glance) // bounded by itself
}

// nanoCores is the rate since an earlier reading, at least cpuWindow ago.
func (c *Collector) nanoCores(id string, usage uint64, now time.Time) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	r, ok := c.rates[id]
	since := now.Sub(r.at)
	if ok && since < cpuWindow {
		return r.cores
	}
	cores := uint64(0)
	if ok && usage >= r.usage {
		cores = uint64(float64(usage-r.usage) / since.Seconds())
	}
	c.rates[id] = rate{usage: usage, at: now, cores: cores}
	return cores
}

func value(n uint64) *cri.UInt64Value { return &cri.UInt64Value{Value: n} }

func limited(limit, used uint64) *cri.UInt64Value {
	if limit == math.MaxUint64 || limit < used {
		return value(0)
	}
	return value(limit - used)
}

func psi(p cgroup.Pressure) *cri.PsiStats {
	one := func(s cgroup.Stall) *cri.PsiData {
		return &cri.PsiData{Total: s.Total * 1000, Avg10: s.Avg10, Avg60: s.Avg60, Avg300: s.Avg300}
	}
	return &cri.PsiStats{Full: one(p.Full), Some: one(p.Some)}
}

func (c *Collector) cpu(id string, s cgroup.Stats, now time.Time) *cri.CpuUsage {
	return &cri.CpuUsage{
		Timestamp: now.UnixNano(), UsageCoreNanoSeconds: value(s.CPUUsage), UsageNanoCores: value(c.nanoCores(id, s.CPUUsage, now)), Psi: psi(s.CPU),
	}
}

func memory(s cgroup.Stats, now time.Time) *cri.MemoryUsage {
	return &cri.MemoryUsage{
		Timestamp: now.UnixNano(), WorkingSetBytes: value(s.WorkingSet()), AvailableBytes: limited(s.MemoryLimit, s.WorkingSet()),
		UsageBytes: value(s.MemoryUsage), RssBytes: value(s.RSS), PageFaults: value(s.PageFaults),
		MajorPageFaults: value(s.MajorFaults), Psi: psi(s.Memory),
	}
}

// Container measures one container. One that does not run has only its attributes and its layer.
func (c *Collector) Container(ct *pod.Container) (*cri.ContainerStats, error) {
	now := time.Now()
	out := &cri.ContainerStats{
		Attributes: &cri.ContainerAttributes{
			Id: ct.ID, Metadata: ct.Config.GetMetadata(), Labels: ct.Config.GetLabels(), Annotations: ct.Config.GetAnnotations(),
		},
	}
	if sz, known := c.layer(ct.ID); known {
		out.WritableLayer = &cri.FilesystemUsage{
			Timestamp: sz.at.UnixNano(), FsId: &cri.FilesystemIdentifier{Mountpoint: c.fsID},
			UsedBytes: value(sz.bytes), InodesUsed: value(sz.inodes),
		}
	}
	if ct.State().CRI() != cri.ContainerState_CONTAINER_RUNNING {
		return out, nil
	}
	g, err := c.pods.Group(ct)
	if err != nil {
		return nil, err
	}
	s, err := c.groups.Read(g)
	if err != nil {
		return nil, err
	}
	out.Cpu, out.Memory = c.cpu(ct.ID, s, now), memory(s, now)
	out.Io = &cri.IoUsage{Timestamp: now.UnixNano(), Psi: psi(s.IO)}
	out.Swap = &cri.SwapUsage{Timestamp: now.UnixNano(), SwapUsageBytes: value(s.SwapUsage), SwapAvailableBytes: limited(s.SwapLimit, s.SwapUsage)}
	return out, nil
}
