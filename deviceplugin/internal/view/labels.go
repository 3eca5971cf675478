package view

import (
	"cmp"
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
	version(set, n.Driver.Version, "cuda.driver-version", "cuda.driver")
	version(set, n.Driver.CUDA, "cuda.runtime-version", "cuda.runtime")
	set("gpu.machine", n.Machine)
	set("gpu.mode", g.Mode)
	major, minor, _ := strings.Cut(g.Compute, ".")
	set("gpu.compute.major", major)
	set("gpu.compute.minor", minor)
	set("gpu.family", family(g.Compute))
	set("gpu.count", strconv.Itoa(len(n.GPUs)))
	set("gpu.clique", clique(n))
	if g.Memory > 0 {
		set("gpu.memory", strconv.FormatUint(g.Memory>>20, 10))
	}
	set("mig.capable", strconv.FormatBool(g.MIG || major == "8" && minor == "0" || major == "9" || major == "10"))
	set("mig.strategy", string(strategy))
	product := g.Product
	if strategy == policy.MIGSingle {
		product += single(n, p, set)
	}
	set("gpu.product", product+sharing(p, set))
	profiles(n, set)
	return out
}

// setter sets one label below nvidia.com/, if its value is not empty.
type setter func(key, value string)

// version sets a version's labels, and those under the names that they had before.
func version(set setter, v, name, old string) {
	parts := append(strings.Split(v, "."), "", "")
	set(name+".full", v)
	for i, part := range []string{"major", "minor", "revision"} {
		set(name+"."+part, parts[i])
		if old == "cuda.driver" || i < 2 {
			set(old+"."+strings.Replace(part, "revision", "rev", 1), parts[i])
		}
	}
}

// single describes the instances that are offered in the GPUs' place, and returns what the product's name gets.
func single(n *inventory.Node, p policy.Plan, set setter) string {
	for _, g := range n.GPUs {
		if g.MIG && len(g.Instances) > 0 && len(p.Resources) > 0 {
			in := g.Instances[0]
			seen := map[string]bool{}
			for _, d := range p.Resources[0].Devices {
				seen[d.UUID] = true
			}
			set("gpu.count", strconv.Itoa(len(seen)))
			instance(set, "gpu", in)
			return "-MIG-" + strings.ReplaceAll(in.Profile, "+", ".")
		}
	}
	return ""
}

// slicesIn are the parts of a profile: "2c.3g.40gb" is two compute slices of a GPU instance of three, "3g.40gb" all.
var slicesIn = regexp.MustCompile(`^(?:([0-9])c\.)?([0-9])g\.`)

func instance(set setter, name string, in inventory.Instance) {
	if in.Memory > 0 {
		set(name+".memory", strconv.FormatUint(in.Memory>>20, 10))
	}
	if m := slicesIn.FindStringSubmatch(in.Profile); m != nil {
		set(name+".slices.gi", m[2])
		set(name+".slices.ci", cmp.Or(m[1], m[2]))
	}
	if e := in.Engines; e.Multiprocessors > 0 {
		set(name+".multiprocessors", strconv.Itoa(e.Multiprocessors))
		for kind, n := range map[string]int{"copy": e.Copy, "decoder": e.Decoder, "encoder": e.Encoder, "jpeg": e.JPEG, "ofa": e.OFA} {
			set(name+".engines."+kind, strconv.Itoa(n))
		}
	}
}

// clique is that of all GPUs; a node with some in another one has none.
func clique(n *inventory.Node) string {
	for _, g := range n.GPUs {
		if g.Clique != n.GPUs[0].Clique {
			return ""
		}
	}
	return n.GPUs[0].Clique
}

// sharing describes the first resource of whole GPUs, and returns what the product's name gets.
func sharing(p policy.Plan, set setter) string {
	for _, r := range p.Resources {
		if len(r.Rule.MIG) > 0 || len(r.Devices) == 0 {
			continue
		}
		kind := map[policy.Sharing]string{policy.Exclusive: "none", policy.TimeSlicing: "time-slicing", policy.MPS: "mps"}[r.Rule.Sharing]
		set("gpu.sharing-strategy", kind)
		set("gpu.replicas", strconv.Itoa(max(r.Rule.Replicas, 1)))
		set("mps.capable", strconv.FormatBool(r.Rule.Sharing == policy.MPS))
		if r.Rule.Sharing != policy.Exclusive && !strings.HasSuffix(r.Rule.Name, ".shared") {
			return "-SHARED"
		}
		return ""
	}
	return ""
}

// profiles counts the instances of each kind.
func profiles(n *inventory.Node, set setter) {
	count := map[string]int{}
	for _, g := range n.GPUs {
		for _, in := range g.Instances {
			name := "mig-" + strings.ReplaceAll(in.Profile, "+", ".")
			count[name]++
			instance(set, name, in)
			set(name+".product", g.Product+"-MIG-"+strings.ReplaceAll(in.Profile, "+", "."))
		}
	}
	for name, c := range count {
		set(name+".count", strconv.Itoa(c))
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
