package view

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/berth-project/berth/deviceplugin/internal/inventory"
	"github.com/berth-project/berth/deviceplugin/internal/policy"
)

var notLabel = regexp.MustCompile(`[^A-Za-z0-9._-]+`)

// labelValue brings a text into the form of a label's value: at most 63 characters, alphanumeric at both ends.
func labelValue(s string) string {
	s = strings.Trim(notLabel.ReplaceAllString(s, "-"), "-_.")
	return strings.TrimRight(s[:min(len(s), 63)], "-_.")
}

// families are the names of compute capabilities, as GPU feature discovery has them.
func family(compute string) string {
	major, minor, _ := strings.Cut(compute, ".")
	switch major {
	case "5":
		return "maxwell"
	case "6":
		return "pascal"
	case "7":
		if minor == "5" {
			return "turing"
		}
		return "volta"
	case "8":
		if minor == "9" {
			return "ada-lovelace"
		}
		return "ampere"
	case "9":
		return "hopper"
	case "10", "11", "12":
		return "blackwell"
	}
	return ""
}

// Labels are those of NVIDIA's GPU feature discovery, of what the node offers under nvidia.com/gpu and, for MIG,
// under nvidia.com/mig-*. Where GPUs differ the first one's figures stand, as there.
func Labels(n *inventory.Node, p policy.Plan, strategy policy.MIGStrategy) map[string]string {
	out := map[string]string{}
	set := func(key, value string) {
		if v := labelValue(value); v != "" {
			out["nvidia.com/"+key] = v
		}
	}
	if len(n.GPUs) == 0 {
		return out
	}
	g := n.GPUs[0]
	set("gpu.present", "true")
	for prefix, v := range map[string]string{"cuda.driver-version": n.Driver.Version, "cuda.runtime-version": n.Driver.CUDA} {
		parts := append(strings.Split(v, "."), "", "")
		if v == "" {
			continue
		}
		set(prefix+".full", v)
		set(prefix+".major", parts[0])
		set(prefix+".minor", parts[1])
		set(prefix+".revision", parts[2])
	}
	major, minor, _ := strings.Cut(g.Compute, ".")
	set("gpu.compute.major", major)
	set("gpu.compute.minor", minor)
	set("gpu.family", family(g.Compute))
	set("gpu.count", strconv.Itoa(len(n.GPUs)))
	set("gpu.product", g.Product)
	if g.Memory > 0 {
		set("gpu.memory", strconv.FormatUint(g.Memory>>20, 10))
	}
	set("mig.capable", strconv.FormatBool(g.MIG || major == "8" && minor == "0" || major == "9" || major == "10"))
	set("mig.strategy", string(strategy))
	sharing(p, set)
	profiles(n, set)
	return out
}

// sharing describes the first resource of whole GPUs.
func sharing(p policy.Plan, set func(key, value string)) {
	for _, r := range p.Resources {
		if len(r.Rule.MIG) > 0 || len(r.Devices) == 0 {
			continue
		}
		kind := map[policy.Sharing]string{policy.Exclusive: "none", policy.TimeSlicing: "time-slicing", policy.MPS: "mps"}[r.Rule.Sharing]
		set("gpu.sharing-strategy", kind)
		set("gpu.replicas", strconv.Itoa(max(r.Rule.Replicas, 1)))
		return
	}
}

// profiles counts the instances of each kind.
func profiles(n *inventory.Node, set func(key, value string)) {
	count, memory := map[string]int{}, map[string]uint64{}
	for _, g := range n.GPUs {
		for _, in := range g.Instances {
			name := strings.ReplaceAll(in.Profile, "+", ".")
			count[name]++
			memory[name] = in.Memory
		}
	}
	for _, name := range slices.Sorted(maps.Keys(count)) {
		set("mig-"+name+".count", strconv.Itoa(count[name]))
		if memory[name] > 0 {
			set("mig-"+name+".memory", strconv.FormatUint(memory[name]>>20, 10))
		}
	}
}

// Feature writes labels as a feature file of node-feature-discovery: one key=value a line, in order.
func Feature(labels map[string]string) []byte {
	var b []byte
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		b = fmt.Appendf(b, "%s=%s\n", k, labels[k])
	}
	return b
}
