package agent

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/berth-project/berth/cni/internal/offload"
	"github.com/berth-project/berth/cni/internal/overlay"
)

// Status is what `berth-netd status` shows.
type Status struct {
	Version string `json:"version"`
	Node    string `json:"node"`
	// Source is where the fabric in force came from and when; Refused why a newer one was not taken.
	Source  string    `json:"source"`
	Taken   time.Time `json:"taken,omitzero"`
	Refused string    `json:"refused,omitempty"`
	Remarks []string  `json:"remarks,omitempty"`
	// Ready: the kernel holds what it should, and pods can be served.
	Ready   bool      `json:"ready"`
	Applied time.Time `json:"applied,omitzero"`
	Failed  string    `json:"failed,omitempty"`
	// CNI is the configuration that was written for the runtime.
	CNI      string         `json:"cni,omitempty"`
	PodMTU   int            `json:"podMTU"`
	Peers    []overlay.Peer `json:"peers"`
	Routes   []string       `json:"routes"`
	Problems []string       `json:"problems,omitempty"`
	Changes  []Change       `json:"changes,omitempty"`
	// Checksums are the devices that were found to spoil them, and have them computed in software.
	Checksums []offload.Verdict `json:"checksums,omitempty"`
	BGP       any               `json:"bgp,omitempty"`
}

// Status is the present one.
func (a *Agent) Status() Status {
	bgp, verdicts := a.speaker.Status(), a.verdicts()
	a.mu.Lock()
	defer a.mu.Unlock()
	v := &a.live
	s := Status{
		Version: a.version, Node: a.conf.Node, Source: v.from, Taken: v.taken, Refused: v.refused, Remarks: slices.Concat(v.remarks, v.unspoken),
		Ready: v.ready && v.failed == "", Applied: v.applied, Failed: v.failed, CNI: v.cniFile, Changes: v.history, BGP: bgp, Checksums: verdicts,
	}
	if v.plan != nil {
		s.PodMTU, s.Peers, s.Problems = v.plan.PodMTU, v.plan.Peers, v.plan.Problems
		for _, r := range v.plan.Routes {
			s.Routes = append(s.Routes, r.String()+"  # "+r.Why)
		}
	}
	return s
}

// String is the status for people: what is wrong first, then who is reached how, then what was done last.
func (s Status) String() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	state := "ready"
	if !s.Ready {
		state = "not ready"
	}
	line("node %s: %s, %d peers, pods' MTU %d", s.Node, state, len(s.Peers), s.PodMTU)
	line("fabric from %s, %s", orElse(s.Source, "nowhere"), ago(s.Taken))
	for _, p := range []struct{ what, text string }{{"REFUSED", s.Refused}, {"FAILED", s.Failed}} {
		if p.text != "" {
			line("%s %s", p.what, strings.ReplaceAll(p.text, "\n", "\n  "))
		}
	}
	for _, r := range s.Remarks {
		line("LEFT OUT %s", r)
	}
	for _, p := range s.Problems {
		line("PROBLEM %s", p)
	}
	for _, v := range s.Checksums {
		line("SOFTWARE CHECKSUMS on %s since %s: %s", v.Dev, ago(v.Time), v.Why)
	}
	for _, p := range s.Peers {
		for i, block := range p.Blocks {
			line("  %-24s %-20s %s", p.Node, block, p.Ways[i])
		}
	}
	for i := len(s.Changes) - 1; i >= max(0, len(s.Changes)-5); i-- {
		c := s.Changes[i]
		line("%s: %s: %d changes: %s %s", ago(c.Time), c.Why, len(c.What)+c.More, strings.Join(c.What[:min(3, len(c.What))], ", "), c.Err)
	}
	return b.String()
}

func ago(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return time.Since(t).Round(time.Second).String() + " ago"
}

// Metrics are in Prometheus' text format.
func (a *Agent) Metrics() string {
	verdicts, asked, sound := a.verdicts(), 0, 0
	if a.test != nil {
		asked, sound = a.test.Asked()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	v := &a.live
	var b strings.Builder
	put := func(kind, name, help string, value float64) {
		fmt.Fprintf(&b, "# HELP berth_netd_%s %s\n# TYPE berth_netd_%s %s\nberth_netd_%s %g\n", name, help, name, kind, name, value)
	}
	flag := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	put("gauge", "software_checksums", "Devices that were found to spoil checksums, which are computed in software now.", float64(len(verdicts)))
	put("gauge", "checksum_peers", "Ends of tunnels that are asked whether checksums arrive.", float64(asked))
	put("gauge", "checksum_peers_sound", "Those that said so last.", float64(sound))
	put("gauge", "ready", "1 if the kernel holds what the fabric asks for.", flag(v.ready && v.failed == ""))
	put("gauge", "fabric_refused", "1 if the newest fabric was refused and an older one is in force.", flag(v.refused != ""))
	put("gauge", "fabric_remarks", "Objects of the source that were left out because they are wrong.", float64(len(v.remarks)+len(v.unspoken)))
	put("counter", "refusals_total", "Fabrics that were refused.", float64(v.counts.refusals))
	put("counter", "applies_total", "Times that the kernel was compared with the plan.", float64(v.counts.applies))
	put("counter", "failures_total", "Times that this failed.", float64(v.counts.failures))
	put("counter", "changes_total", "Objects of the kernel that were made, changed or removed.", float64(v.counts.changes))
	put("counter", "overruns_total", "Times that the kernel had more to tell than the socket held.", float64(v.counts.overruns))
	put("gauge", "last_apply_seconds", "How long the last comparison took.", v.counts.lastSeconds)
	put("counter", "udp_dropped_total", "Packets that mode udp had nowhere to send to, or did not believe.", float64(a.udp.Dropped.Load()))
	if v.plan != nil {
		put("gauge", "peers", "Other nodes.", float64(len(v.plan.Peers)))
		put("gauge", "routes", "Routes that the plan has.", float64(len(v.plan.Routes)))
		put("gauge", "problems", "What of the fabric cannot be had on this node now.", float64(len(v.plan.Problems)))
		put("gauge", "pod_mtu_bytes", "MTU of pods' interfaces.", float64(v.plan.PodMTU))
	}
	return b.String()
}
