// Package kube makes the model of the pod network from a Kubernetes cluster: Nodes with their podCIDRs and addresses, and
// NetworkPool objects. It holds of each object only what the model needs, and no informer's cache.
package kube

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strconv"

	corev1 "k8s.io/api/core/v1"

	"github.com/berth-project/berth/cni/internal/fabric"
)

// Annotations of ours on Nodes, written by operators: the network that the node is in, and the MTU of it.
const (
	annotationSegment = "net.berth.dev/segment"
	annotationMTU     = "net.berth.dev/mtu"
)

// Annotations of flannel's (its kube subnet manager), written by the agent of each node.
const (
	flannelType     = "flannel.alpha.coreos.com/backend-type"
	flannelData     = "flannel.alpha.coreos.com/backend-data"
	flannelData6    = "flannel.alpha.coreos.com/backend-v6-data"
	flannelPublic   = "flannel.alpha.coreos.com/public-ip"
	flannelPublic6  = "flannel.alpha.coreos.com/public-ipv6"
	flannelKube     = "flannel.alpha.coreos.com/kube-subnet-manager"
	flannelNothing  = "null"
	flannelVXLAN    = "vxlan"
	flannelHostGW   = "host-gw"
	maxAnnotation   = 4 << 10 // nothing of ours is longer
	flannelVNI      = 1
	annotationQuote = 40 // bytes of a wrong value that a message shows
)

// lease is flannel's backend-data for VXLAN.
type lease struct {
	VNI     uint32     `json:"VNI"`
	VtepMAC fabric.MAC `json:"VtepMAC"`
}

// nodeOf is what the model needs of a Node. What is wrong of it is an error that names the field.
func nodeOf(n *corev1.Node, flannel bool) (fabric.Node, error) {
	out := fabric.Node{Name: n.Name, UID: string(n.UID)}
	blocks := n.Spec.PodCIDRs
	if len(blocks) == 0 && n.Spec.PodCIDR != "" {
		blocks = []string{n.Spec.PodCIDR}
	}
	for _, s := range blocks {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return out, fmt.Errorf("spec.podCIDRs: %w", err)
		}
		out.PodCIDRs = append(out.PodCIDRs, p)
	}
	for _, a := range n.Status.Addresses {
		if a.Type != corev1.NodeInternalIP {
			continue
		}
		ip, err := netip.ParseAddr(a.Address)
		if err != nil {
			return out, fmt.Errorf("status.addresses: %w", err)
		}
		if !out.Address(ip.Is6()).IsValid() {
			out.Addresses = append(out.Addresses, ip)
		}
	}
	if err := annotations(n.Annotations, &out); err != nil {
		return out, err
	}
	if flannel {
		return out, flannelNode(n.Annotations, &out)
	}
	return out, nil
}

// value is an annotation of a length that can be right.
func value(all map[string]string, key string) (string, error) {
	v := all[key]
	if len(v) > maxAnnotation {
		return "", fmt.Errorf("annotation %s: %d bytes long", key, len(v))
	}
	return v, nil
}

func quote(v string) string { return strconv.Quote(v[:min(len(v), annotationQuote)]) }

func annotations(all map[string]string, out *fabric.Node) (err error) {
	if out.Segment, err = value(all, annotationSegment); err != nil {
		return err
	}
	v, err := value(all, annotationMTU)
	if err != nil || v == "" {
		return err
	}
	if out.MTU, err = strconv.Atoi(v); err != nil {
		return fmt.Errorf("annotation %s: %s is no number", annotationMTU, quote(v))
	}
	return nil
}

// flannelNode takes over what flannel, or another Berth in its stead, says of a node: its address and its VTEPs' MACs.
func flannelNode(all map[string]string, out *fabric.Node) error {
	for _, f := range []struct {
		public, data string
		v6           bool
		mac          *fabric.MAC
	}{{flannelPublic, flannelData, false, &out.VTEPMAC}, {flannelPublic6, flannelData6, true, &out.VTEPMAC6}} {
		v, err := value(all, f.public)
		if err != nil {
			return err
		}
		if v != "" {
			ip, err := netip.ParseAddr(v)
			if err != nil || ip.Is6() != f.v6 {
				return fmt.Errorf("annotation %s: %s is no address of its family", f.public, quote(v))
			}
			replace(out, ip)
		}
		if v, err = value(all, f.data); err != nil {
			return err
		}
		if v == "" || v == flannelNothing {
			continue
		}
		var l lease
		if err := json.Unmarshal([]byte(v), &l); err != nil {
			return fmt.Errorf("annotation %s: %s: %w", f.data, quote(v), err)
		}
		*f.mac = l.VtepMAC
	}
	return nil
}

// replace makes ip the node's address of its family.
func replace(n *fabric.Node, ip netip.Addr) {
	for i, a := range n.Addresses {
		if a.Is6() == ip.Is6() {
			n.Addresses[i] = ip
			return
		}
	}
	n.Addresses = append(n.Addresses, ip)
}

// publish is what a node says of itself so that flannel on other nodes reaches it.
func publish(n fabric.Node, mode fabric.Mode) (map[string]string, error) {
	out := map[string]string{flannelKube: "true", flannelType: flannelVXLAN, flannelData: flannelNothing}
	if mode == fabric.HostGW {
		out[flannelType] = flannelHostGW
	}
	for _, f := range []struct {
		public, data string
		v6           bool
	}{{flannelPublic, flannelData, false}, {flannelPublic6, flannelData6, true}} {
		ip := n.Address(f.v6)
		if !ip.IsValid() {
			continue
		}
		out[f.public] = ip.String()
		if mode == fabric.HostGW {
			continue
		}
		b, err := json.Marshal(lease{VNI: flannelVNI, VtepMAC: n.MAC(f.v6)})
		if err != nil {
			return nil, err
		}
		out[f.data] = string(b)
	}
	return out, nil
}
