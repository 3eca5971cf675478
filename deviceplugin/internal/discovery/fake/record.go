package fake

import (
	"slices"

	"sigs.k8s.io/yaml"

	"github.com/berth-project/berth/deviceplugin/internal/driver"
	"github.com/berth-project/berth/deviceplugin/internal/inventory"
)

// Record is the profile, as YAML, of a node whose driver lists n and has these numbers: a Source of it lists the same. origin
// says what was recorded.
func Record(origin string, n *inventory.Node, m driver.Majors) ([]byte, error) {
	p := Profile{Origin: origin, Driver: n.Driver, Majors: m}
	for _, g := range n.GPUs {
		p.GPUs = append(p.GPUs, GPU{GPU: g})
	}
	at := func(uuid string) int {
		return slices.IndexFunc(n.GPUs, func(g inventory.GPU) bool { return g.UUID == uuid })
	}
	for _, l := range n.Links {
		p.Links = append(p.Links, Pair{A: at(l.A), B: at(l.B), Fabric: Fabric{Path: l.Path, NVLinks: l.NVLinks}})
	}
	return yaml.Marshal(p)
}
