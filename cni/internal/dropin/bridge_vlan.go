package dropin

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/berth-project/berth/cni/internal/nlwire"
	"github.com/berth-project/berth/cni/internal/rtnl"
	"github.com/berth-project/berth/cni/internal/spec"
)

// trunk is an entry of vlanTrunk: one VLAN, a span of them, or both.
type trunk struct {
	MinID *int `json:"minID"`
	MaxID *int `json:"maxID"`
	ID    *int `json:"id"`
}

// parseVlans lists the port's VLANs: the native one first, which is 1 for a trunk that names none.
func (b *bridge) parseVlans() ([]rtnl.Vlan, error) {
	if b.Vlan < 0 || b.Vlan > 4094 {
		return nil, spec.Errorf(spec.CodeConfig, "vlan %d is not between 0 and 4094", b.Vlan)
	}
	valid := func(id *int) bool { return id != nil && *id > 0 && *id <= 4094 }
	ids := map[int]bool{}
	for i, t := range b.VlanTrunk {
		switch {
		case (t.MinID == nil) != (t.MaxID == nil):
			return nil, spec.Errorf(spec.CodeConfig, "vlanTrunk[%d]: minID and maxID must be set together", i)
		case t.MinID != nil && (!valid(t.MinID) || !valid(t.MaxID) || *t.MaxID < *t.MinID):
			return nil, spec.Errorf(spec.CodeConfig, "vlanTrunk[%d]: minID %d to maxID %d is no span between 1 and 4094", i, *t.MinID, *t.MaxID)
		case t.ID != nil && !valid(t.ID):
			return nil, spec.Errorf(spec.CodeConfig, "vlanTrunk[%d]: id %d is not between 1 and 4094", i, *t.ID)
		case t.MinID != nil:
			for id := *t.MinID; id <= *t.MaxID; id++ {
				ids[id] = true
			}
		}
		if t.ID != nil {
			ids[*t.ID] = true
		}
	}
	var out []rtnl.Vlan
	native := b.Vlan
	if native == 0 && len(ids) > 0 {
		native = 1
	}
	if native != 0 {
		out = append(out, rtnl.Vlan{ID: uint16(native), Native: true})
		delete(ids, native)
	}
	sorted := make([]int, 0, len(ids))
	for id := range ids {
		sorted = append(sorted, id)
	}
	slices.Sort(sorted)
	for _, id := range sorted {
		out = append(out, rtnl.Vlan{ID: uint16(id)})
	}
	return out, nil
}

// ensureVlanLink makes the pair whose one end is a port in the VLAN and whose other end has the gateway's address.
func (b *bridge) ensureVlanLink(c *Call, br rtnl.Link) (rtnl.Link, error) {
	name := fmt.Sprintf("%s.%d", b.Bridge, b.Vlan)
	l, found, err := c.net.Link(name)
	if err != nil || found {
		return l, err
	}
	port := "veth" + strings.ReplaceAll(macOf("vlan", name).String(), ":", "")[:11]
	self, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return l, err
	}
	defer self.Close() //nolint:errcheck // read only
	err = c.net.Route().Do([]nlwire.Op{rtnl.AddVeth(rtnl.Veth{
		Name: port, MAC: macOf("port", name), Peer: name, PeerMAC: macOf("vlan", name), MTU: b.MTU,
		PeerNS: int(self.Fd()), Master: br.Index,
	})})
	if err != nil {
		return l, err
	}
	p, _, err := c.net.Link(port)
	if err != nil {
		return l, err
	}
	if l, found, err = c.net.Link(name); err != nil || !found {
		return l, errors.Join(err, fmt.Errorf("link %s vanished", name))
	}
	ops := []nlwire.Op{rtnl.SetUp(l.Index), rtnl.AddVlan(p.Index, rtnl.Vlan{ID: uint16(b.Vlan), Native: true})}
	if !b.PreserveDefaultVlan {
		ops = append(ops, rtnl.DelVlan(p.Index, 1))
	}
	return l, vlanError(c.net.Route().Do(ops))
}

// machineID makes names on different machines differ.
func machineID() string {
	b, err := os.ReadFile("/etc/machine-id")
	if err != nil {
		b, _ = os.ReadFile("/proc/sys/kernel/random/boot_id") // then until the next boot
	}
	return string(b)
}
