package stats

import (
	"math"
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
	extra      []string // further label keys
	with       []string // and this metric's values for them
}

// reading is all that is known of a container at one time.
type reading struct {
	cgroup.Stats
	size    size
	started time.Time
	limits  *cri.LinuxContainerResources
}

func seconds(ns uint64) uint64 { return ns / 1e9 }

func finite(n uint64) uint64 {
	if n == math.MaxUint64 {
		return 0
	}
	return n
}

// containerMetrics is the table of what a container has. Values are whole numbers in the CRI, so times that
// cAdvisor gives as fractions of a second are cut.
func containerMetrics() []metric {
	gauge := func(name, help string, v func(reading) uint64) metric {
		return metric{name: name, help: help, value: v}
	}
	count := func(name, help string, v func(reading) uint64) metric {
		return metric{name: name, help: help, counter: true, value: v}
	}
	fault := func(kind string, v func(reading) uint64) metric {
		return metric{
			name: "container_memory_failures_total", help: "Cumulative count of memory allocation failures.", counter: true, value: v,
			extra: []string{"failure_type", "scope"}, with: []string{kind, "container"},
		}
	}
	return []metric{
		count("container_cpu_user_seconds_total", "Cumulative user cpu time consumed in seconds.", func(r reading) uint64 { return seconds(r.CPUUser) }),
		count("container_cpu_system_seconds_total", "Cumulative system cpu time consumed in seconds.", func(r reading) uint64 { return seconds(r.CPUSystem) }),
		{
			name: "container_cpu_usage_seconds_total", help: "Cumulative cpu time consumed in seconds.", counter: true,
			value: func(r reading) uint64 { return seconds(r.CPUUsage) }, extra: []string{"cpu"}, with: []string{"total"},
		},
		count("container_cpu_cfs_periods_total", "Number of elapsed enforcement period intervals.", func(r reading) uint64 { return r.Periods }),
		count("container_cpu_cfs_throttled_periods_total", "Number of throttled period intervals.", func(r reading) uint64 { return r.Throttled }),
		count("container_cpu_cfs_throttled_seconds_total", "Total time duration the container has been throttled.", func(r reading) uint64 { return seconds(r.ThrottledTime) }),
		gauge("container_memory_cache", "Number of bytes of page cache memory.", func(r reading) uint64 { return r.Cache }),
		gauge("container_memory_rss", "Size of RSS in bytes.", func(r reading) uint64 { return r.RSS }),
		gauge("container_memory_mapped_file", "Size of memory mapped files in bytes.", func(r reading) uint64 { return r.MappedFile }),
		gauge("container_memory_swap", "Container swap usage in bytes.", func(r reading) uint64 { return r.SwapUsage }),
		gauge("container_memory_usage_bytes", "Current memory usage in bytes, including all memory regardless of when it was accessed.", func(r reading) uint64 { return r.MemoryUsage }),
		gauge("container_memory_max_usage_bytes", "Maximum memory usage recorded in bytes.", func(r reading) uint64 { return r.MaxUsage }),
		gauge("container_memory_working_set_bytes", "Current working set in bytes.", func(r reading) uint64 { return r.WorkingSet() }),
		count("container_memory_failcnt", "Number of memory usage hits limits.", func(r reading) uint64 { return r.MemoryFailures }),
		fault("pgfault", func(r reading) uint64 { return r.PageFaults }),
		fault("pgmajfault", func(r reading) uint64 { return r.MajorFaults }),
		count("container_oom_events_total", "Count of out of memory events observed for the container.", func(r reading) uint64 { return r.OOMKills }),
		gauge("container_processes", "Number of processes running inside the container.", func(r reading) uint64 { return r.Pids }),
		gauge("container_threads", "Number of threads running inside the container.", func(r reading) uint64 { return r.Pids }),
		gauge("container_threads_max", "Maximum number of threads allowed inside the container, 0 if unlimited.", func(r reading) uint64 { return finite(r.PidsLimit) }),
		gauge("container_fs_usage_bytes", "Number of bytes that are consumed by the container on its writable layer.", func(r reading) uint64 { return r.size.bytes }),
		gauge("container_fs_inodes_total", "Number of inodes in its writable layer.", func(r reading) uint64 { return r.size.inodes }),
		gauge("container_start_time_seconds", "Start time of the container since unix epoch in seconds.", func(r reading) uint64 { return uint64(max(r.started.Unix(), 0)) }),
		gauge("container_last_seen", "Last time a container was seen.", func(reading) uint64 { return uint64(time.Now().Unix()) }),
		gauge("container_spec_cpu_period", "CPU period of the container.", func(r reading) uint64 { return uint64(max(r.limits.GetCpuPeriod(), 0)) }),
		gauge("container_spec_cpu_quota", "CPU quota of the container.", func(r reading) uint64 { return uint64(max(r.limits.GetCpuQuota(), 0)) }),
		gauge("container_spec_cpu_shares", "CPU share of the container.", func(r reading) uint64 { return uint64(max(r.limits.GetCpuShares(), 0)) }),
		gauge("container_spec_memory_limit_bytes", "Memory limit for the container.", func(r reading) uint64 { return finite(r.MemoryLimit) }),
		gauge("container_spec_memory_swap_limit_bytes", "Memory swap limit for the container.", func(r reading) uint64 { return uint64(max(r.limits.GetMemorySwapLimitInBytes(), 0)) }),
		count("container_pressure_cpu_waiting_seconds_total", "Total time duration tasks in the container have waited due to CPU congestion.", func(r reading) uint64 { return r.CPU.Some.Total / 1e6 }),
		count("container_pressure_cpu_stalled_seconds_total", "Total time duration no tasks in the container could make progress due to CPU congestion.", func(r reading) uint64 { return r.CPU.Full.Total / 1e6 }),
		count("container_pressure_memory_waiting_seconds_total", "Total time duration tasks in the container have waited due to memory congestion.", func(r reading) uint64 { return r.Memory.Some.Total / 1e6 }),
		count("container_pressure_memory_stalled_seconds_total", "Total time duration no tasks in the container could make progress due to memory congestion.", func(r reading) uint64 { return r.Memory.Full.Total / 1e6 }),
		count("container_pressure_io_waiting_seconds_total", "Total time duration tasks in the container have waited due to IO congestion.", func(r reading) uint64 { return r.IO.Some.Total / 1e6 }),
		count("container_pressure_io_stalled_seconds_total", "Total time duration no tasks in the container could make progress due to IO congestion.", func(r reading) uint64 { return r.IO.Full.Total / 1e6 }),
	}
}

// netMetric is one counter of a pod's interface.
type netMetric struct {
	name, help string
	value      func(*cri.NetworkInterfaceUsage) uint64
}

func netMetrics() []netMetric {
	return []netMetric{
		{"container_network_receive_bytes_total", "Cumulative count of bytes received.", func(i *cri.NetworkInterfaceUsage) uint64 { return i.GetRxBytes().GetValue() }},
		{"container_network_receive_errors_total", "Cumulative count of errors encountered while receiving.", func(i *cri.NetworkInterfaceUsage) uint64 { return i.GetRxErrors().GetValue() }},
		{"container_network_transmit_bytes_total", "Cumulative count of bytes transmitted.", func(i *cri.NetworkInterfaceUsage) uint64 { return i.GetTxBytes().GetValue() }},
		{"container_network_transmit_errors_total", "Cumulative count of errors encountered while transmitting.", func(i *cri.NetworkInterfaceUsage) uint64 { return i.GetTxErrors().GetValue() }},
	}
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
				Name: m.name, Timestamp: now, MetricType: cri.MetricType_COUNTER, LabelValues: with(own, i.GetName()), Value: value(m.value(i)),
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
		r := reading{Stats: s, size: c.layer(ct.ID), started: st.StartedAt, limits: st.Resources}
		cm := &cri.ContainerMetrics{ContainerId: ct.ID}
		base := []string{ct.ID, ct.ID, ct.Config.GetImage().GetUserSpecifiedImage(), ct.Config.GetMetadata().GetName(), md.GetName(), md.GetNamespace()}
		for _, m := range containerMetrics() {
			kind := cri.MetricType_GAUGE
			if m.counter {
				kind = cri.MetricType_COUNTER
			}
			cm.Metrics = append(cm.Metrics, &cri.Metric{
				Name: m.name, Timestamp: now, MetricType: kind, LabelValues: with(base, m.with...), Value: value(m.value(r)),
			})
		}
		out.ContainerMetrics = append(out.ContainerMetrics, cm)
	}
	return out, nil
}

func with(base []string, more ...string) []string {
	return append(append(make([]string, 0, len(base)+len(more)), base...), more...)
}
