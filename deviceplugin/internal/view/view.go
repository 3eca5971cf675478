// Package view is what people and monitoring see of a node: who holds which GPU, in which health, as a table, as
// Prometheus metrics and as the labels of GPU feature discovery. Collect joins the node's state with the kubelet's
// PodResources API and the driver's list of processes; the writers are pure.
package view

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/berth-project/berth/deviceplugin/internal/cdi"
	"github.com/berth-project/berth/deviceplugin/internal/discovery"
	"github.com/berth-project/berth/deviceplugin/internal/health"
	"github.com/berth-project/berth/deviceplugin/internal/inventory"
	"github.com/berth-project/berth/deviceplugin/internal/ledger"
	"github.com/berth-project/berth/deviceplugin/internal/node"
	"github.com/berth-project/berth/deviceplugin/internal/server"
)

// Holder is a container that has a device.
type Holder struct {
	Namespace string `json:"namespace"`
	Pod       string `json:"pod"`
	Container string `json:"container"`
	// Resource and ID are the device's; ID is the UUID, with a share's number.
	Resource string `json:"resource"`
	ID       string `json:"id"`
}

// GPU is one line, with a line for each MIG instance below it.
type GPU struct {
	inventory.GPU
	Health    health.State        `json:"health"`
	Reason    string              `json:"reason,omitempty"`
	Sample    *health.Sample      `json:"sample,omitempty"`
	Holders   []Holder            `json:"holders,omitempty"`
	Processes []discovery.Process `json:"processes,omitempty"`
}

// Offer is how one resource stands.
type Offer struct {
	Name    string `json:"name"`
	Healthy int    `json:"healthy"`
	All     int    `json:"all"`
	server.Registration
}

// View is all of it.
type View struct {
	Source    string              `json:"source"`
	Driver    inventory.Driver    `json:"driver"`
	GPUs      []GPU               `json:"gpus"`
	Offers    []Offer             `json:"offers"`
	Unserved  []string            `json:"unserved,omitempty"`
	Override  string              `json:"override,omitempty"` // of the configuration, by the node's label or the flag
	Problems  []string            `json:"problems,omitempty"`
	Claims    map[string][]string `json:"claims,omitempty"`    // what resource claims hold, by claim
	Given     []string            `json:"given,omitempty"`     // what the device plugin has given away
	NoHolders string              `json:"noHolders,omitempty"` // why the kubelet could not be asked
}

// Holders asks who has what.
type Holders func(ctx context.Context) ([]Holder, error)

// Collect joins everything. What cannot be had is said in the view, not an error: the rest is still worth seeing.
func Collect(ctx context.Context, n *node.Node, regs []server.Registration, holders Holders) View {
	s, _ := n.State()
	v := View{Source: n.Source().Name(), Driver: s.Inventory.Driver, Problems: s.Problems}
	held, err := holders(ctx)
	if err != nil {
		v.NoHolders = err.Error()
	}
	for _, g := range s.Inventory.GPUs {
		x := GPU{GPU: g, Health: s.Health[g.UUID], Reason: s.Reasons[g.UUID]}
		if p, ok := s.Samples[g.UUID]; ok {
			x.Sample = &p
		}
		for _, h := range held {
			uuid, _, _ := strings.Cut(h.ID, "::")
			if uuid == g.UUID || slices.ContainsFunc(g.Instances, func(i inventory.Instance) bool { return i.UUID == uuid }) {
				x.Holders = append(x.Holders, h)
			}
		}
		if x.Reason == "" {
			x.Processes, _ = n.Source().Processes(ctx, discovery.Target{UUID: g.UUID, Bus: g.Bus}) //nolint:errcheck // one that cannot be asked shows none
		}
		v.GPUs = append(v.GPUs, x)
	}
	for _, r := range s.Plan.Resources {
		o := Offer{Name: r.Rule.Name, All: len(r.Devices)}
		for _, d := range r.Devices {
			if d.Healthy() {
				o.Healthy++
			}
		}
		if i := slices.IndexFunc(regs, func(x server.Registration) bool { return x.Resource == o.Name }); i >= 0 {
			o.Registration = regs[i]
		}
		v.Offers = append(v.Offers, o)
	}
	for _, u := range s.Plan.Unserved {
		v.Unserved = append(v.Unserved, u.UUID+": "+u.Reason)
	}
	return v
}

// Table writes the view for a person.
func (v View) Table(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintf(t, "driver %s, CUDA %s, asked through %s\n\n", cmp.Or(v.Driver.Version, "unknown"), cmp.Or(v.Driver.CUDA, "unknown"), v.Source)
	if v.Override != "" {
		fmt.Fprintf(t, "override %s\n\n", v.Override)
	}
	fmt.Fprintln(t, "GPU\tUUID\tPRODUCT\tMEMORY\tUSED\tHEALTH\tHELD BY\tPROCESSES")
	for _, g := range v.GPUs {
		used := "-"
		if g.Sample != nil && g.Sample.MemoryUsed > 0 {
			used = mib(g.Sample.MemoryUsed)
		}
		fmt.Fprintf(t, "%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", g.Index, g.UUID, g.Product, mib(g.Memory), used, cmp.Or(string(g.Health.Phase), "Unknown"), v.heldBy(g, g.UUID), pids(g.Processes))
		for _, in := range g.Instances {
			fmt.Fprintf(t, "  %d/%d\t%s\tMIG %s\t%s\t\t\t%s\t\n", in.GI, in.CI, in.UUID, in.Profile, mib(in.Memory), v.heldBy(g, in.UUID))
		}
		if g.Reason != "" {
			fmt.Fprintf(t, "\t%s\n", g.Reason)
		}
	}
	fmt.Fprintln(t, "\nRESOURCE\tHEALTHY\tALL\tKUBELET")
	for _, o := range v.Offers {
		state := "listens"
		if o.Watched == 0 {
			state = cmp.Or(o.Error, "does not listen")
		}
		fmt.Fprintf(t, "%s\t%d\t%d\t%s\n", o.Name, o.Healthy, o.All, state)
	}
	for _, list := range []struct {
		title string
		lines []string
	}{{"not offered", v.Unserved}, {"problems", v.Problems}} {
		if len(list.lines) > 0 {
			fmt.Fprintf(t, "\n%s:\n  %s\n", list.title, strings.Join(list.lines, "\n  "))
		}
	}
	if v.NoHolders != "" {
		fmt.Fprintf(t, "\nwho holds what is not known: %s\n", v.NoHolders)
	}
	return t.Flush()
}

// heldBy lists the containers that have a device through the device plugin, and the resource claim that has it.
func (v View) heldBy(g GPU, uuid string) string {
	var all []string
	for _, claim := range slices.Sorted(maps.Keys(v.Claims)) {
		if slices.Contains(v.Claims[claim], uuid) {
			all = append(all, "claim:"+claim)
		}
	}
	for _, h := range g.Holders {
		if id, _, _ := strings.Cut(h.ID, "::"); id == uuid {
			all = append(all, h.Namespace+"/"+h.Pod+"/"+h.Container)
		}
	}
	return cmp.Or(strings.Join(all, " "), "-")
}

func pids(all []discovery.Process) string {
	var out []string
	for _, p := range all {
		out = append(out, fmt.Sprint(p.PID))
	}
	return cmp.Or(strings.Join(out, " "), "-")
}

func mib(n uint64) string {
	if n == 0 {
		return "-"
	}
	return fmt.Sprintf("%d MiB", n>>20)
}

// InUse is what containers have, for the ledger.
func InUse(held []Holder) []ledger.Use {
	all := make([]ledger.Use, len(held))
	for i, h := range held {
		all[i] = ledger.Use{Resource: h.Resource, ID: strings.TrimPrefix(h.ID, cdi.Kind+"=")}
	}
	return all
}
