package fabric

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

// Salvage takes out of f the nodes that are wrong, or that have what another node has, and the BGP peers that are wrong,
// and says which and why. The pools are not looked at. It is for sources in which each node is written by somebody else: one that is wrong shall not keep
// the others' changes away. Of two nodes with the same address, block or MAC the first by name keeps it.
func (f *Fabric) Salvage() (remarks []string) {
	slices.SortFunc(f.Nodes, func(a, b Node) int { return cmp.Compare(a.Name, b.Name) })
	addrs, macs, names := map[netip.Addr]string{}, map[MAC]string{}, map[string]bool{}
	var blocks []netip.Prefix // sorted, of nodes that stay
	f.Nodes = slices.DeleteFunc(f.Nodes, func(n Node) bool {
		why := ""
		if errs := n.check("node", f); len(errs) > 0 {
			why = errs[0].Error()
		}
		if !nodeName.MatchString(n.Name) || names[n.Name] {
			why = "its name is taken or no name"
		}
		for _, a := range n.Addresses {
			if o := addrs[a]; o != "" {
				why = fmt.Sprintf("address %s is also that of node %s", a, o)
			}
		}
		for _, mac := range []MAC{n.MAC(false), n.MAC(true)} {
			if o := macs[mac]; o != "" {
				why = fmt.Sprintf("VTEP MAC %s is also that of node %s", mac, o)
			}
		}
		for _, b := range n.PodCIDRs {
			if o, taken := overlapping(blocks, b); taken && why == "" {
				why = fmt.Sprintf("block %s overlaps %s of another node", b, o)
			}
		}
		if why != "" {
			remarks = append(remarks, fmt.Sprintf("node %s: %s", n.Name, why))
			return true
		}
		names[n.Name] = true
		for _, a := range n.Addresses {
			addrs[a] = n.Name
		}
		macs[n.MAC(false)], macs[n.MAC(true)] = n.Name, n.Name
		for _, b := range n.PodCIDRs {
			at, _ := slices.BinarySearchFunc(blocks, b, ComparePrefix)
			blocks = slices.Insert(blocks, at, b)
		}
		return false
	})
	return append(remarks, f.salvagePeers()...)
}

// overlapping looks at the neighbours of b in a sorted list without overlaps.
func overlapping(blocks []netip.Prefix, b netip.Prefix) (netip.Prefix, bool) {
	at, _ := slices.BinarySearchFunc(blocks, b, ComparePrefix)
	for _, i := range []int{at - 1, at} {
		if i >= 0 && i < len(blocks) && blocks[i].Overlaps(b) {
			return blocks[i], true
		}
	}
	return netip.Prefix{}, false
}
