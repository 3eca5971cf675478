package kube

import (
	"fmt"
	"net/netip"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/berth-project/berth/cni/internal/fabric"
)

// BGPPeer is a peer outside of the cluster as an object of it. Its definition is in cni/deploy/crds.yaml.
type BGPPeer struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              BGPPeerSpec `json:"spec"`
}

// BGPPeerSpec is [fabric.BGPPeer] without its name. The password is in a file of the nodes, not in the object.
type BGPPeerSpec struct {
	Address      string            `json:"address"`
	ASN          uint32            `json:"asn"`
	Nodes        []string          `json:"nodes,omitempty"`
	NodeLabels   map[string]string `json:"nodeLabels,omitempty"`
	PasswordFile string            `json:"passwordFile,omitempty"`
	GTSM         uint8             `json:"gtsm,omitempty"`
	Multihop     uint8             `json:"multihop,omitempty"`
	BFD          bool              `json:"bfd,omitempty"`
	MaxPrefixes  uint32            `json:"maxPrefixes,omitempty"`
	Import       []fabric.BGPRule  `json:"import,omitempty"`
	Export       []fabric.BGPRule  `json:"export,omitempty"`
}

// BGPPeerList is a list of them.
type BGPPeerList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata"`
	Items           []BGPPeer `json:"items"`
}

// DeepCopyObject implements [runtime.Object]. Specs are never changed, so that they may be shared.
func (p *BGPPeer) DeepCopyObject() runtime.Object {
	out := *p
	p.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	return &out
}

// DeepCopyObject implements [runtime.Object].
func (l *BGPPeerList) DeepCopyObject() runtime.Object {
	out := *l
	l.ListMeta.DeepCopyInto(&out.ListMeta)
	out.Items = append([]BGPPeer(nil), l.Items...)
	return &out
}

// peerOf is the peer of an object.
func peerOf(obj any) (fabric.BGPPeer, error) {
	p, ok := obj.(*BGPPeer)
	if !ok {
		return fabric.BGPPeer{}, fmt.Errorf("is a %T", obj)
	}
	s := p.Spec
	out := fabric.BGPPeer{
		Name: p.Name, ASN: s.ASN, Nodes: s.Nodes, Labels: s.NodeLabels, PasswordFile: s.PasswordFile,
		GTSM: s.GTSM, Multihop: s.Multihop, BFD: s.BFD, MaxPrefixes: s.MaxPrefixes,
		Import: s.Import, Export: s.Export,
	}
	var err error
	if out.Address, err = netip.ParseAddr(s.Address); err != nil {
		return out, fmt.Errorf("spec.address: %w", err)
	}
	if s.ASN == 0 {
		return out, fmt.Errorf("spec.asn: missing")
	}
	return out, nil
}
