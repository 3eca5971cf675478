package kube

import (
	"cmp"
	"fmt"
	"net/netip"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/berth-project/berth/cni/internal/fabric"
)

// Group is the API group of Berth's network objects.
const Group = "net.berth.dev"

func groupVersion() schema.GroupVersion {
	return schema.GroupVersion{Group: Group, Version: "v1alpha1"}
}

// NetworkPool is a pool of the fabric as an object of the cluster. Its definition is in cni/deploy/crds.yaml.
type NetworkPool struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              NetworkPoolSpec `json:"spec"`
}

// NetworkPoolSpec is [fabric.Pool] without its name.
type NetworkPoolSpec struct {
	CIDRs        []string `json:"cidrs"`
	Mode         string   `json:"mode,omitempty"`
	Direct       bool     `json:"direct,omitempty"`
	MTU          int      `json:"mtu,omitempty"`
	NoMasquerade bool     `json:"noMasquerade,omitempty"`
	Namespaces   []string `json:"namespaces,omitempty"`
	// BlockSize and BlockSizeV6 are the prefix lengths of a node's block, where the pool has namespaces.
	BlockSize   int `json:"blockSize,omitempty"`
	BlockSizeV6 int `json:"blockSizeV6,omitempty"`
}

// NetworkPoolList is a list of them.
type NetworkPoolList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata"`
	Items           []NetworkPool `json:"items"`
}

// DeepCopyObject implements [runtime.Object].
func (p *NetworkPool) DeepCopyObject() runtime.Object {
	out := *p
	p.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	out.Spec.CIDRs = append([]string(nil), p.Spec.CIDRs...)
	out.Spec.Namespaces = append([]string(nil), p.Spec.Namespaces...)
	return &out
}

// DeepCopyObject implements [runtime.Object].
func (l *NetworkPoolList) DeepCopyObject() runtime.Object {
	out := *l
	l.ListMeta.DeepCopyInto(&out.ListMeta)
	out.Items = make([]NetworkPool, len(l.Items))
	for i := range l.Items {
		out.Items[i] = *l.Items[i].DeepCopyObject().(*NetworkPool) //nolint:errcheck // its own type
	}
	return &out
}

// pool is a pool, and the lengths of its blocks' prefixes by family.
type pool struct {
	fabric.Pool
	bits [2]int
}

// readPool reads an object.
func readPool(obj any) (out pool, err error) {
	p, ok := obj.(*NetworkPool)
	if !ok {
		return out, fmt.Errorf("is a %T", obj)
	}
	if out.Pool, err = poolOf(p); err != nil {
		return out, err
	}
	out.bits = [2]int{cmp.Or(p.Spec.BlockSize, blockBits4), cmp.Or(p.Spec.BlockSizeV6, blockBits6)}
	for i, limit := range []int{30, 126} {
		if b := out.bits[i]; b < 1 || b > limit {
			return out, fmt.Errorf("spec.%s: %d is not between 1 and %d", []string{"blockSize", "blockSizeV6"}[i], b, limit)
		}
	}
	return out, nil
}

// poolOf is the pool of an object. What is wrong of it is an error that names the field.
func poolOf(p *NetworkPool) (fabric.Pool, error) {
	out := fabric.Pool{
		Name: p.Name, Mode: fabric.Mode(p.Spec.Mode), Direct: p.Spec.Direct, MTU: p.Spec.MTU, NoMasquerade: p.Spec.NoMasquerade,
		Namespaces: p.Spec.Namespaces,
	}
	for i, s := range p.Spec.CIDRs {
		c, err := netip.ParsePrefix(s)
		if err != nil {
			return out, fmt.Errorf("spec.cidrs[%d]: %w", i, err)
		}
		out.CIDRs = append(out.CIDRs, c)
	}
	one := fabric.Fabric{Pools: []fabric.Pool{out}}
	return out, one.Validate()
}
