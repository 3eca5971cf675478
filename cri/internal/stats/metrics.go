package stats

import (
	"slices"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/cri/internal/cgroup"
	"github.com/berth-project/berth/cri/internal/pod"
)

// labels are on every metric, named as cAdvisor names them, so that dashboards go on working (KEP-2371).
func labels() []string { return []string{"id", "name", "image", "container", "pod", "namespace"} }

// metric is one figure of a group under cAdvisor's name.
type metric struct {
	name, help string
	counter    bool
	value      func(in reading) uint64
	extra      []string               // further label keys
	with       []string               // and this metric's values for them,
	rows       func(in reading) []row // or rows that each have theirs, instead of value
}

// row is a figure with its own values for the further labels.
type row struct {
	with  []string
	value uint64
}

// reading is all that is known of a container at one time.
type reading struct {
	cgroup.Stats
	size    size
	files   files
	started time.Time
	limits  *cri.LinuxContainerResources
}

// all are the metric's rows of one reading.
func (m metric) all(r reading) []row {
	if m.rows != nil {
		return m.rows(r)
	}
	return []row{{m.with, m.value(r)}}
}

// netMetric is one counter of a pod's interface.
type netMetric struct {
	name, help string
	value      func(counters) uint64
}

func netMetrics() []netMetric {
	both := func(what, help string, of func(direction) uint64) []netMetric {
		return []netMetric{
			{"container_network_receive_" + what + "_total", "Cumulative count of " + help + " while receiving.", func(i counters) uint64 { return of(i.rx) }},
			{"container_network_transmit_" + what + "_total", "Cumulative count of " + help + " while transmitting.", func(i counters) uint64 { return of(i.tx) }},
		}
	}
	return slices.Concat(
		both("bytes", "bytes", func(d direction) uint64 { return d.bytes }),
		both("packets", "packets", func(d direction) uint64 { return d.packets }),
		both("errors", "errors encountered", func(d direction) uint64 { return d.errors }),
		both("packets_dropped", "packets dropped", func(d direction) uint64 { return d.dropped }),
	)
}

// Descriptors names every metric once, with all its label keys.
func (c *Collector) Descriptors() []*cri.MetricDescriptor {
	var out []*cri.MetricDescriptor
	seen := map[string]bool{}
	for _, m := range containerMetrics() {
		if !seen[m.name] {
			seen[m.name] = true
			out = append(out, &cri.MetricDescriptor{Name: m.name, Help: m.help, LabelKeys: append(labels(), m.extra...)})
		}
	}
	for _, m := range netMetrics() {
		out = append(out, &cri.MetricDescriptor{Name: m.name, Help: m.help, LabelKeys: append(labels(), "interface")})
	}
	return out
}

// Metrics gives all metrics of a pod and of its running containers.
func (c *Collector) Metrics(p *pod.Pod) (*cri.PodSandboxMetrics, error) {
	now := time.Now().UnixNano()
	md := p.Config.GetMetadata()
	out := &cri.PodSandboxMetrics{PodSandboxId: p.ID}
	ifs, err := c.interfaces(p)
	if err != nil {
		return nil, err
	}
	own := []string{p.ID, p.ID, "", "", md.GetName(), md.GetNamespace()}
	for _, i := range ifs {
		for _, m := range netMetrics() {
			out.Metrics = append(out.Metrics, &cri.Metric{
				Name: m.name, Timestamp: now, MetricType: cri.MetricType_COUNTER, LabelValues: with(own, i.name), Value: value(m.value(i)),
			})
		}
	}
	for _, ct := range c.pods.ContainersOf(p.ID) {
		st := ct.State()
		if st.CRI() != cri.ContainerState_CONTAINER_RUNNING {
			continue
		}
		g, err := c.pods.Group(ct)
		if err != nil {
			return nil, err
		}
		s, err := c.groups.Read(g)
		if err != nil { // it ended meanwhile
			continue
		}
		layer, _ := c.layer(ct.ID) // unknown right after a restart: 0
		r := reading{Stats: s, size: layer, files: readFiles(c.groups.Pids(g), st.Pid), started: st.StartedAt, limits: st.Resources}
		cm := &cri.ContainerMetrics{ContainerId: ct.ID}
		base := []string{ct.ID, ct.ID, ct.Config.GetImage().GetUserSpecifiedImage(), ct.Config.GetMetadata().GetName(), md.GetName(), md.GetNamespace()}
		for _, m := range containerMetrics() {
			kind := cri.MetricType_GAUGE
			if m.counter {
				kind = cri.MetricType_COUNTER
			}
			for _, row := range m.all(r) {
				cm.Metrics = append(cm.Metrics, &cri.Metric{
					Name: m.name, Timestamp: now, MetricType: kind, LabelValues: with(base, row.with...), Value: value(row.value),
				})
			}
		}
		out.ContainerMetrics = append(out.ContainerMetrics, cm)
	}
	return out, nil
}

func with(base []string, more ...string) []string {
	return append(append(make([]string, 0, len(base)+len(more)), base...), more...)
}
