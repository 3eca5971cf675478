// Package policy turns an inventory into the resources a node offers: which devices, under which names, shared by
// how many. It is pure: the same inventory, rules and health give the same resources in the same order, so that
// ids stay the same over restarts, upgrades and reboots.
package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/berth-project/berth/deviceplugin/internal/alloc"
	"github.com/berth-project/berth/deviceplugin/internal/inventory"
)

// Sharing is how one device is given to several containers.
type Sharing string

// The ways of sharing.
const (
	// Exclusive gives a device to one container.
	Exclusive Sharing = "exclusive"
	// TimeSlicing gives it to several, which take turns and see all of its memory: nothing keeps them apart.
	TimeSlicing Sharing = "time-slicing"
	// MPS gives it to several through one MPS daemon, each with a part of its memory.
	MPS Sharing = "mps"
)

// MIGStrategy says what becomes of MIG instances where no rule selects them.
type MIGStrategy string

// The strategies, as in NVIDIA's device plugin.
const (
	// MIGNone offers whole GPUs. One in MIG mode is none: CUDA computes on its instances alone.
	MIGNone MIGStrategy = "none"
	// MIGSingle offers the instances under the GPUs' own name; all have to be alike.
	MIGSingle MIGStrategy = "single"
	// MIGMixed offers each profile under its own name, nvidia.com/mig-1g.10gb.
	MIGMixed MIGStrategy = "mixed"
)

// Rule names the devices it selects. Of several rules the first that selects a device has it.
type Rule struct {
	Name string // "nvidia.com/gpu"
	// Globs; a device is selected if it fits one of each list that is not empty. A rule without MIG globs selects
	// whole GPUs, one with them only MIG instances.
	UUID, Product, Bus, MIG []string
	Sharing                 Sharing
	Replicas                int // shares of each device, at least 2 unless Exclusive
	Spread                  alloc.Policy
	// One refuses a container that asks for more than one share; MPS always does.
	One bool
	// Memory is what an MPS client may have, in bytes; 0: its equal part.
	Memory uint64
}

// ClientMemory is what one MPS client of a device may have, in bytes.
func (r Rule) ClientMemory(d Device) uint64 {
	if r.Memory > 0 {
		return r.Memory
	}
	return d.Memory / uint64(max(r.Replicas, 1)) //nolint:gosec // positive
}

// Shares are how many a device is offered in; 1: as a whole.
func (r Rule) Shares() int {
	if r.Sharing == Exclusive {
		return 1
	}
	return r.Replicas
}

// Policy is all of it.
type Policy struct {
	Rules []Rule
	MIG   MIGStrategy
}

// Resource is what the kubelet sees under one name.
type Resource struct {
	Rule    Rule
	Devices []Device
}

// Device is one of a resource's devices.
type Device struct {
	// ID is the kubelet's: UUID, with "::<n>" for a share.
	ID string
	// UUID is the GPU's or the MIG instance's: the name of its CDI device.
	UUID string
	// GPU is the physical GPU's UUID, Index its place for MPS and messages.
	GPU  string
	NUMA int // -1: unknown
	// Memory is the device's own, in bytes.
	Memory uint64
	// Reason says why it is unhealthy; empty if it is healthy.
	Reason string
}

// Healthy says whether the device may be given away.
func (d Device) Healthy() bool { return d.Reason == "" }

// Unserved is a device that no resource has, and why.
type Unserved struct{ UUID, Reason string }

// Plan is what a node offers.
type Plan struct {
	Resources []Resource // by the order of their rules; a rule that selects nothing is there without devices
	Unserved  []Unserved
}

// candidate is a GPU or an instance before any rule.
type candidate struct {
	uuid    string
	gpu     *inventory.GPU
	profile string // of an instance
	memory  uint64
}

// Compile makes the plan. reasons gives, by GPU UUID, why a GPU is unhealthy: all its instances and shares are then.
func Compile(n *inventory.Node, p Policy, reasons map[string]string) Plan {
	candidates, plan := candidates(n, p)
	rules := p.Rules
	if len(rules) == 0 {
		rules = defaults(p.MIG, candidates)
	}
	for _, r := range rules {
		plan.Resources = append(plan.Resources, Resource{Rule: r})
	}
	for _, c := range candidates {
		i := slices.IndexFunc(rules, func(r Rule) bool { return selects(r, c, len(p.Rules) == 0 && p.MIG == MIGSingle) })
		if i < 0 {
			plan.Unserved = append(plan.Unserved, Unserved{c.uuid, "no resource of the configuration selects it"})
			continue
		}
		plan.Resources[i].Devices = append(plan.Resources[i].Devices, devices(rules[i], c, reasons[c.gpu.UUID])...)
	}
	return plan
}

// candidates lists what can be offered: GPUs, or the instances of those in MIG mode.
func candidates(n *inventory.Node, p Policy) (all []candidate, plan Plan) {
	profiles := map[string]bool{}
	whole := false
	for i := range n.GPUs {
		g := &n.GPUs[i]
		if g.MIG && p.MIG == MIGNone && len(p.Rules) == 0 {
			plan.Unserved = append(plan.Unserved, Unserved{g.UUID, "it is in MIG mode: set mig_strategy to single or mixed to offer its instances, or switch MIG off"})
			continue
		}
		if !g.MIG {
			all = append(all, candidate{uuid: g.UUID, gpu: g, memory: g.Memory})
			whole = true
			continue
		}
		if len(g.Instances) == 0 {
			plan.Unserved = append(plan.Unserved, Unserved{g.UUID, "it is in MIG mode and has no instances: create some, or switch MIG off"})
		}
		for _, in := range g.Instances {
			all = append(all, candidate{uuid: in.UUID, gpu: g, profile: in.Profile, memory: in.Memory})
			profiles[in.Profile] = true
		}
	}
	if p.MIG == MIGSingle && len(p.Rules) == 0 && (len(profiles) > 1 || len(profiles) == 1 && whole) {
		for _, c := range all {
			plan.Unserved = append(plan.Unserved, Unserved{c.uuid, "MIG strategy single needs every GPU divided into instances of one profile: use mixed, or divide them alike"})
		}
		return nil, plan
	}
	return all, plan
}

// defaults are the rules of a configuration that has none.
func defaults(s MIGStrategy, all []candidate) []Rule {
	rules := []Rule{{Name: "nvidia.com/gpu", Sharing: Exclusive, Replicas: 1, Spread: alloc.Packed}}
	if s != MIGMixed {
		return rules
	}
	var profiles []string
	for _, c := range all {
		if c.profile != "" && !slices.Contains(profiles, c.profile) {
			profiles = append(profiles, c.profile)
		}
	}
	slices.Sort(profiles)
	for _, p := range profiles {
		rules = append(rules, Rule{Name: "nvidia.com/mig-" + resourceName(p), MIG: []string{p}, Sharing: Exclusive, Replicas: 1, Spread: alloc.Packed})
	}
	return rules
}

// resourceName makes a profile a part of a resource's name: "1g.10gb+me" is "1g.10gb.me".
func resourceName(profile string) string { return strings.ReplaceAll(profile, "+", ".") }

func selects(r Rule, c candidate, single bool) bool {
	if (c.profile != "") != (len(r.MIG) > 0) && !(single && c.profile != "") {
		return false
	}
	fits := func(globs []string, names ...string) bool {
		return len(globs) == 0 || slices.ContainsFunc(globs, func(g string) bool {
			return slices.ContainsFunc(names, func(n string) bool { return inventory.Match(g, n) })
		})
	}
	return fits(r.UUID, c.uuid, c.gpu.UUID) && fits(r.Product, c.gpu.Product) && fits(r.Bus, c.gpu.Bus) && (single || fits(r.MIG, c.profile))
}

func devices(r Rule, c candidate, reason string) []Device {
	d := Device{ID: c.uuid, UUID: c.uuid, GPU: c.gpu.UUID, NUMA: c.gpu.NUMA, Memory: c.memory, Reason: reason}
	if r.Sharing == Exclusive {
		return []Device{d}
	}
	all := make([]Device, r.Replicas)
	for i := range all {
		all[i] = d
		all[i].ID = fmt.Sprintf("%s::%d", c.uuid, i)
	}
	return all
}
