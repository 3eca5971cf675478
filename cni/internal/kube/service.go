package kube

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"

	"github.com/berth-project/berth/cni/internal/fabric"
	"github.com/berth-project/berth/cni/internal/netdconf"
)

// excluded is the label of nodes that no load is to come to from outside (KEP-1143).
const excluded = corev1.LabelNodeExcludeBalancers

// service is what the model needs of a Service: its addresses in the ranges that may be told.
type service struct {
	name string
	// everywhere are reached through any node, local only through nodes with an endpoint of the service.
	everywhere, local []netip.Addr
}

// endpoints is what it needs of an EndpointSlice.
type endpoints struct {
	service string
	// any says that there is one that serves, here that one is on this node.
	any, here bool
}

// serviceRanges are those of the configuration, and those that are told as a whole.
func serviceRanges(conf netdconf.Kubernetes) (ranges, whole []netip.Prefix, err error) {
	parse := func(key string, all []string) (out []netip.Prefix, err error) {
		for i, text := range all {
			p, err := netip.ParsePrefix(text)
			if err == nil && p != p.Masked() {
				err = fmt.Errorf("%s has bits behind its prefix, want %s", p, p.Masked())
			}
			if err != nil {
				return nil, fmt.Errorf("kubernetes.%s[%d]: %w", key, i, err)
			}
			out = append(out, p)
		}
		return out, nil
	}
	if ranges, err = parse("serviceRanges", conf.ServiceRanges); err != nil {
		return nil, nil, err
	}
	if whole, err = parse("wholeRanges", conf.WholeRanges); err != nil {
		return nil, nil, err
	}
	for i, w := range whole {
		if !slices.ContainsFunc(ranges, func(r netip.Prefix) bool { return fabric.Within(w, r) }) {
			return nil, nil, fmt.Errorf("kubernetes.wholeRanges[%d]: %s is in none of kubernetes.serviceRanges", i, w)
		}
	}
	return ranges, whole, nil
}

// Bounds of what is told: no Service has a hundred addresses of its own accord, and BGP's own bound must not be met by who
// may write Services.
const (
	maxAddresses = 100
	maxTold      = 10_000
)

// prepareServices makes what watches services, if any is to be told.
func (s *Source) prepareServices(rc *rest.Config, scheme *runtime.Scheme) (err error) {
	if s.ranges, s.whole, err = serviceRanges(s.conf); err != nil || len(s.ranges) == 0 {
		return err
	}
	if err := discoveryv1.AddToScheme(scheme); err != nil {
		return err
	}
	s.services = newStore("service", s.dirty, func(obj any) (service, error) { return serviceOf(obj, s.ranges) })
	s.slices = newStore("endpoint slice", s.dirty, func(obj any) (endpoints, error) { return endpointsOf(obj, s.node) })
	s.discovery, err = client(rc, scheme, discoveryv1.SchemeGroupVersion, "/apis", runtime.ContentTypeProtobuf)
	return err
}

// serviceOf reads the addresses: those of the cluster, those an operator wrote, those of a load balancer. Anyone who may
// write a Service can write any address into it (CVE-2020-8554), so what is in no range is not even looked at.
func serviceOf(obj any, ranges []netip.Prefix) (service, error) {
	s, ok := obj.(*corev1.Service)
	if !ok {
		return service{}, fmt.Errorf("is a %T", obj)
	}
	out := service{name: s.Namespace + "/" + s.Name}
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		return out, nil
	}
	add := func(text string, local bool) {
		a, err := netip.ParseAddr(text)
		if err != nil || !slices.ContainsFunc(ranges, func(r netip.Prefix) bool { return r.Contains(a) }) {
			return // "None", a host's name, or nothing that may be told
		}
		if local {
			out.local = append(out.local, a)
		} else {
			out.everywhere = append(out.everywhere, a)
		}
	}
	inside := s.Spec.InternalTrafficPolicy != nil && *s.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal
	for _, a := range s.Spec.ClusterIPs {
		add(a, inside)
	}
	outside := s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
	for _, a := range s.Spec.ExternalIPs {
		add(a, outside)
	}
	for _, in := range s.Status.LoadBalancer.Ingress {
		add(in.IP, outside)
	}
	if n := len(out.everywhere) + len(out.local); n > maxAddresses {
		return out, fmt.Errorf("%d addresses in the ranges that are told, at most %d", n, maxAddresses)
	}
	return out, nil
}

// endpointsOf reads whether any endpoint serves, and whether one does so on the node.
func endpointsOf(obj any, node string) (endpoints, error) {
	s, ok := obj.(*discoveryv1.EndpointSlice)
	if !ok {
		return endpoints{}, fmt.Errorf("is a %T", obj)
	}
	out := endpoints{service: s.Namespace + "/" + s.Labels[discoveryv1.LabelServiceName]}
	for _, e := range s.Endpoints {
		if e.Conditions.Ready != nil && !*e.Conditions.Ready {
			continue
		}
		out.any = true
		out.here = out.here || e.NodeName != nil && *e.NodeName == node
	}
	return out, nil
}

// told is what a node tells of services: whole prefixes always, an address while an endpoint serves it. A node that is
// excluded from load balancing tells nothing.
func told(whole []netip.Prefix, services []service, slicesOf []endpoints, node fabric.Node) (out []fabric.BGPService) {
	if _, no := node.Labels[excluded]; no {
		return nil
	}
	for _, p := range whole {
		out = append(out, fabric.BGPService{Name: p.String(), Prefix: p})
	}
	anywhere, here := map[string]bool{}, map[string]bool{}
	for _, e := range slicesOf {
		anywhere[e.service] = anywhere[e.service] || e.any
		here[e.service] = here[e.service] || e.here
	}
	for _, s := range services {
		if anywhere[s.name] {
			for _, a := range s.everywhere {
				if !slices.ContainsFunc(whole, func(p netip.Prefix) bool { return p.Contains(a) }) {
					out = append(out, fabric.BGPService{Name: s.name, Prefix: netip.PrefixFrom(a, a.BitLen())})
				}
			}
		}
		if here[s.name] {
			for _, a := range s.local {
				out = append(out, fabric.BGPService{Name: s.name, Prefix: netip.PrefixFrom(a, a.BitLen()), Nodes: []string{node.Name}})
			}
		}
	}
	return out
}
