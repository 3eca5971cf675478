package kube

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math/big"
	"net/netip"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-project/berth/cni/internal/fabric"
)

// NetworkBlock is a part of a pool that belongs to one node, beside the block that the cluster gives it: pools of some
// namespaces are shared out so. Its name is made of its network, so that no two nodes can create the same; it is owned by
// the Node and goes with it. Its definition is in cni/deploy/crds.yaml.
type NetworkBlock struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              NetworkBlockSpec `json:"spec"`
}

// NetworkBlockSpec says whose it is.
type NetworkBlockSpec struct {
	Pool string `json:"pool"`
	Node string `json:"node"`
	CIDR string `json:"cidr"`
}

// NetworkBlockList is a list of them.
type NetworkBlockList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata"`
	Items           []NetworkBlock `json:"items"`
}

// DeepCopyObject implements [runtime.Object].
func (b *NetworkBlock) DeepCopyObject() runtime.Object {
	out := *b
	b.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	return &out
}

// DeepCopyObject implements [runtime.Object].
func (l *NetworkBlockList) DeepCopyObject() runtime.Object {
	out := *l
	l.ListMeta.DeepCopyInto(&out.ListMeta)
	out.Items = append([]NetworkBlock(nil), l.Items...)
	return &out
}

// block is what the model needs of one.
type block struct {
	name, pool, node string
	cidr             netip.Prefix
	// owner is the UID of its Node, "" if nobody owns it; made is when it was made, in seconds.
	owner string
	made  int64
}

func blockOf(obj any) (block, error) {
	b, ok := obj.(*NetworkBlock)
	if !ok {
		return block{}, fmt.Errorf("is a %T", obj)
	}
	cidr, err := netip.ParsePrefix(b.Spec.CIDR)
	if err != nil {
		return block{}, fmt.Errorf("spec.cidr: %w", err)
	}
	out := block{name: b.Name, pool: b.Spec.Pool, node: b.Spec.Node, cidr: cidr, made: b.CreationTimestamp.Unix()}
	for _, o := range b.OwnerReferences {
		if o.Kind == "Node" {
			out.owner = string(o.UID)
		}
	}
	if want := blockName(cidr); b.Name != want || cidr != cidr.Masked() {
		return out, fmt.Errorf("spec.cidr: the block of %s is called %s", cidr.Masked(), want)
	}
	return out, nil
}

// blockName is the object's name: 10.245.0.64/26 is 10-245-0-64-26.
func blockName(p netip.Prefix) string {
	return strings.NewReplacer(".", "-", ":", "-", "/", "-").Replace(p.Addr().StringExpanded() + fmt.Sprintf("/%d", p.Bits()))
}

// Sizes of blocks where the pool does not say them, in bits of the prefix.
const (
	blockBits4 = 26
	blockBits6 = 122
)

// shared are the pools that are given out in blocks: those of some namespaces.
func shared(pools []fabric.Pool) (out []fabric.Pool) {
	for _, p := range pools {
		if len(p.Namespaces) > 0 {
			out = append(out, p)
		}
	}
	return out
}

// giveBlocks adds blocks to their nodes, the older first: pods have their addresses from it. One that is outside of its
// pool, or overlaps what somebody has, is left out and named: a node must not lose everything by it. One of an earlier Node
// of the same name waits for the garbage collector.
func giveBlocks(f *fabric.Fabric, blocks []block) (remarks []string) {
	blocks = slices.Clone(blocks)
	slices.SortStableFunc(blocks, func(a, b block) int { return cmp.Or(cmp.Compare(a.made, b.made), cmp.Compare(a.name, b.name)) })
	var taken []netip.Prefix
	for _, n := range f.Nodes {
		taken = append(taken, n.PodCIDRs...)
	}
	slices.SortFunc(taken, fabric.ComparePrefix)
	for _, b := range blocks {
		i := slices.IndexFunc(f.Nodes, func(n fabric.Node) bool { return n.Name == b.node })
		pool, ok := f.PoolOf(b.cidr)
		at, _ := slices.BinarySearchFunc(taken, b.cidr, fabric.ComparePrefix)
		over := func(i int) bool { return i >= 0 && i < len(taken) && taken[i].Overlaps(b.cidr) }
		switch {
		case i < 0 || b.owner != "" && f.Nodes[i].UID != "" && b.owner != f.Nodes[i].UID:
			continue // its node is gone, or not here yet
		case !ok || pool.Name != b.pool:
			remarks = append(remarks, fmt.Sprintf("block %s: %s is not in pool %s", b.name, b.cidr, b.pool))
		case over(at - 1), over(at):
			remarks = append(remarks, fmt.Sprintf("block %s: %s overlaps another", b.name, b.cidr))
		default:
			taken = slices.Insert(taken, at, b.cidr)
			f.Nodes[i].PodCIDRs = append(slices.Clone(f.Nodes[i].PodCIDRs), b.cidr)
		}
	}
	return remarks
}

// claims are the blocks that a node still needs: one of each network of each shared pool, of what no object has, whoever
// owns it. Where several nodes choose at once each begins at another place. A network that is full keeps no other away.
func claims(f *fabric.Fabric, self fabric.Node, bits map[string][2]int, all []block) (out []block, err error) {
	var taken []netip.Prefix
	for _, b := range all {
		taken = append(taken, b.cidr)
	}
	for _, n := range f.Nodes {
		taken = append(taken, n.PodCIDRs...)
	}
	for _, p := range shared(f.Pools) {
		for _, c := range p.CIDRs {
			if slices.ContainsFunc(self.PodCIDRs, func(b netip.Prefix) bool { return fabric.Within(b, c) }) {
				continue
			}
			size := bits[p.Name][0]
			if c.Addr().Is6() {
				size = bits[p.Name][1]
			}
			if size == 0 {
				continue // another pool by now
			}
			free, ok := pick(c, max(size, c.Bits()), self.Name, taken)
			if !ok {
				err = errors.Join(err, fmt.Errorf("pool %s: %s has no free block of /%d for this node", p.Name, c, size))
				continue
			}
			out = append(out, block{name: blockName(free), pool: p.Name, node: self.Name, cidr: free})
		}
	}
	return out, err
}

// tries bounds the search in a network that is nearly full.
const tries = 1 << 16

func pick(c netip.Prefix, bits int, node string, taken []netip.Prefix) (netip.Prefix, bool) {
	taken = slices.DeleteFunc(slices.Clone(taken), func(t netip.Prefix) bool { return !t.Overlaps(c) })
	slices.SortFunc(taken, fabric.ComparePrefix)
	// Blocks do not overlap each other, so that only the neighbours in the list can overlap another.
	used := func(b netip.Prefix) bool {
		at, _ := slices.BinarySearchFunc(taken, b, fabric.ComparePrefix)
		return at > 0 && taken[at-1].Overlaps(b) || at < len(taken) && taken[at].Overlaps(b)
	}
	count := tries
	if wide := bits - c.Bits(); wide < 16 {
		count = 1 << wide
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(node)) // never fails, says hash.Hash
	for i := range count {
		b := nth(c, bits, (int(h.Sum32()%uint32(count))+i)%count) //nolint:gosec // at most 1<<16
		if !used(b) {
			return b, true
		}
	}
	return netip.Prefix{}, false
}

// nth is the n-th prefix of that many bits in c.
func nth(c netip.Prefix, bits, n int) netip.Prefix {
	length := c.Addr().BitLen()
	v := new(big.Int).SetBytes(c.Addr().AsSlice())
	v.Add(v, new(big.Int).Lsh(big.NewInt(int64(n)), uint(length-bits))) //nolint:gosec // bits are at most length
	a, _ := netip.AddrFromSlice(v.FillBytes(make([]byte, length/8)))
	return netip.PrefixFrom(a, bits)
}

// claim creates what this node still needs. What another node was faster with comes as an event, and the next is tried.
func (s *Source) claim(ctx context.Context, f *fabric.Fabric) error {
	self, ok := f.Node(s.node)
	if !ok {
		return nil
	}
	if f.Validate() != nil {
		return nil // it will be refused: nothing is taken on its word
	}
	blocks, _, _ := s.blocks.all()
	want, err := claims(f, self, s.sizes, blocks)
	if err != nil {
		s.log.Warn("pods of some namespaces cannot be served here", "error", err)
	}
	for _, b := range want {
		obj := &NetworkBlock{
			TypeMeta: metav1.TypeMeta{APIVersion: groupVersion().String(), Kind: "NetworkBlock"},
			ObjectMeta: metav1.ObjectMeta{Name: b.name, OwnerReferences: []metav1.OwnerReference{
				{APIVersion: "v1", Kind: "Node", Name: self.Name, UID: types.UID(self.UID)},
			}},
			Spec: NetworkBlockSpec{Pool: b.pool, Node: b.node, CIDR: b.cidr.String()},
		}
		err := s.net.Post().Resource("networkblocks").Body(obj).Do(ctx).Error()
		if err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("claiming block %s of pool %s: %w", b.cidr, b.pool, err)
		}
		if err == nil {
			s.log.Info("claimed a block", "block", b.cidr, "pool", b.pool)
		}
	}
	return nil
}
