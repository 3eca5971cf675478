package view

import (
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/berth-project/berth/deviceplugin/internal/health"
)

// metric is one family of the Prometheus text format 0.0.4.
type metric struct {
	name, kind, help string
	lines            []string
}

func (m *metric) add(value float64, labels string, args ...any) {
	m.lines = append(m.lines, fmt.Sprintf("%s{%s} %g\n", m.name, fmt.Sprintf(labels, args...), value))
}

// Metrics writes the view for Prometheus. The label values are quoted as Go quotes, which is what the format asks
// for; no value has control characters (inventory.Clean).
func (v View) Metrics(w io.Writer) error {
	info := &metric{name: "berth_gpu_info", kind: "gauge", help: "A GPU that is there: 1."}
	healthy := &metric{name: "berth_gpu_healthy", kind: "gauge", help: "Whether a GPU may be given away."}
	condition := &metric{name: "berth_gpu_condition", kind: "gauge", help: "What is wrong with a GPU: 1 for each condition."}
	xids := &metric{name: "berth_gpu_xids_total", kind: "counter", help: "XIDs the driver reported."}
	memory := &metric{name: "berth_gpu_memory_used_bytes", kind: "gauge", help: "Frame buffer in use."}
	use := &metric{name: "berth_gpu_utilization_ratio", kind: "gauge", help: "Part of the last second in which something ran."}
	heat := &metric{name: "berth_gpu_temperature_celsius", kind: "gauge", help: "Temperature of the GPU."}
	power := &metric{name: "berth_gpu_power_watts", kind: "gauge", help: "Power draw."}
	held := &metric{name: "berth_gpu_allocated", kind: "gauge", help: "A device that a container has: 1."}
	for _, g := range v.GPUs {
		id := fmt.Sprintf("gpu=%q", g.UUID)
		info.add(1, "%s,index=\"%d\",bus=%q,product=%q,driver=%q", id, g.Index, g.Bus, g.Product, v.Driver.Version)
		healthy.add(one(g.Health.Phase == health.Healthy), "%s", id)
		for _, c := range slices.Sorted(maps.Keys(g.Health.Conditions)) {
			condition.add(1, "%s,condition=%q", id, c)
		}
		for _, x := range slices.Sorted(maps.Keys(g.Health.XIDs)) {
			xids.add(float64(g.Health.XIDs[x]), "%s,xid=\"%d\",class=%q", id, x, string(health.LookUp(x).Class))
		}
		if s := g.Sample; s != nil {
			memory.add(float64(s.MemoryUsed), "%s", id)
			use.add(float64(s.Utilization)/100, "%s", id)
			heat.add(float64(s.Temperature), "%s", id)
			power.add(float64(s.Power), "%s", id)
		}
		for _, h := range g.Holders {
			held.add(1, "%s,device=%q,resource=%q,namespace=%q,pod=%q,container=%q", id, h.ID, h.Resource, h.Namespace, h.Pod, h.Container)
		}
	}
	devices := &metric{name: "berth_gpu_devices", kind: "gauge", help: "Devices of a resource, by state."}
	watched := &metric{name: "berth_gpu_kubelet_streams", kind: "gauge", help: "Streams on which the kubelet listens; 0: it does not know the resource."}
	joined := &metric{name: "berth_gpu_registrations_total", kind: "counter", help: "Registrations the kubelet took."}
	for _, o := range v.Offers {
		devices.add(float64(o.Healthy), "resource=%q,state=\"healthy\"", o.Name)
		devices.add(float64(o.All-o.Healthy), "resource=%q,state=\"unhealthy\"", o.Name)
		watched.add(float64(o.Watched), "resource=%q", o.Name)
		joined.add(float64(o.Times), "resource=%q", o.Name)
	}
	problems := &metric{name: "berth_gpu_problems", kind: "gauge", help: "Problems that status names.", lines: []string{fmt.Sprintf("berth_gpu_problems %d\n", len(v.Problems))}}
	for _, m := range []*metric{info, healthy, condition, xids, memory, use, heat, power, held, devices, watched, joined, problems} {
		if len(m.lines) == 0 {
			continue
		}
		if _, err := fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n", m.name, m.help, m.name, m.kind); err != nil {
			return err
		}
		for _, l := range m.lines {
			if _, err := io.WriteString(w, l); err != nil {
				return err
			}
		}
	}
	return nil
}

func one(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
