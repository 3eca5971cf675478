package kube

import (
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

// poolOf is the pool of an object. What is wrong of it is an error that names the field.
func poolOf(p *NetworkPool) (fabric.Pool, error) {
	out := fabric.Pool{
		Name: p.Name, Mode: fabric.Mode(p.Spec.Mode), Direct: p.Spec.Direct, MTU: p.Spec.MTU, NoMasquerade: p.Spec.NoMasquerade,
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
