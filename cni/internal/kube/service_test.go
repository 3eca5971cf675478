package kube

import (
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-project/berth/cni/internal/fabric"
	"github.com/berth-project/berth/cni/internal/netdconf"
)

func TestServiceAddresses(t *testing.T) {
	ranges := []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12"), netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("fd96::/112")}
	local := corev1.ServiceInternalTrafficPolicyLocal
	for name, c := range map[string]struct {
		spec              corev1.ServiceSpec
		ingress           []string
		everywhere, local string
	}{
		"dual stack":    {spec: corev1.ServiceSpec{ClusterIPs: []string{"10.96.0.10", "fd96::10"}}, everywhere: "10.96.0.10 fd96::10"},
		"headless":      {spec: corev1.ServiceSpec{ClusterIPs: []string{"None"}}},
		"a name":        {spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalIPs: []string{"203.0.113.9"}}},
		"out of range":  {spec: corev1.ServiceSpec{ExternalIPs: []string{"8.8.8.8", "203.0.113.9"}}, everywhere: "203.0.113.9"},
		"no address":    {spec: corev1.ServiceSpec{ExternalIPs: []string{"../../etc"}}, ingress: []string{""}},
		"load balancer": {spec: corev1.ServiceSpec{ExternalTrafficPolicy: "Local", ClusterIPs: []string{"10.96.0.11"}}, ingress: []string{"203.0.113.7"}, everywhere: "10.96.0.11", local: "203.0.113.7"},
		"inside local":  {spec: corev1.ServiceSpec{InternalTrafficPolicy: &local, ClusterIPs: []string{"10.96.0.12"}}, local: "10.96.0.12"},
	} {
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web"}, Spec: c.spec}
		for _, ip := range c.ingress {
			s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: ip})
		}
		got, err := serviceOf(s, ranges)
		if err != nil || got.name != "ns/web" || join(got.everywhere) != c.everywhere || join(got.local) != c.local {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

func join(all []netip.Addr) string {
	var out []string
	for _, a := range all {
		out = append(out, a.String())
	}
	return strings.Join(out, " ")
}

// TestTold: an address is told while something serves it, a local one by the nodes where that is, and by no node that is
// excluded from load balancing.
func TestTold(t *testing.T) {
	yes, no, n1, n2 := true, false, "n1", "n2"
	slice := func(node *string, ready *bool) endpoints {
		e, err := endpointsOf(&discoveryv1.EndpointSlice{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web-x", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
			Endpoints:  []discoveryv1.Endpoint{{NodeName: node, Conditions: discoveryv1.EndpointConditions{Ready: ready}}},
		}, "n1")
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	web := service{name: "ns/web", everywhere: []netip.Addr{netip.MustParseAddr("10.96.0.10")}, local: []netip.Addr{netip.MustParseAddr("203.0.113.7")}}
	self := fabric.Node{Name: "n1"}
	for name, c := range map[string]struct {
		whole  []netip.Prefix
		slices []endpoints
		labels map[string]string
		want   string
	}{
		"nobody serves":   {},
		"nobody ready":    {slices: []endpoints{slice(&n1, &no)}},
		"here":            {slices: []endpoints{slice(&n2, &yes), slice(&n1, nil)}, want: "10.96.0.10/32 203.0.113.7/32"},
		"elsewhere":       {slices: []endpoints{slice(&n2, nil)}, want: "10.96.0.10/32"},
		"on no node":      {slices: []endpoints{slice(nil, nil)}, want: "10.96.0.10/32"},
		"the whole":       {whole: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12")}, slices: []endpoints{slice(&n1, nil)}, want: "10.96.0.0/12 203.0.113.7/32"},
		"a node left out": {slices: []endpoints{slice(&n1, nil)}, labels: map[string]string{excluded: ""}},
	} {
		self.Labels = c.labels
		var got []string
		for _, s := range told(c.whole, []service{web}, c.slices, self) {
			got = append(got, s.Prefix.String())
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s: told %q, want %s", name, got, c.want)
		}
	}
}

func TestCheckServiceRanges(t *testing.T) {
	for want, c := range map[string]netdconf.Kubernetes{
		"kubernetes.serviceRanges[0]":          {ServiceRanges: []string{"10.96.0.0"}},
		"want 10.96.0.0/12":                    {ServiceRanges: []string{"10.97.0.0/12"}},
		"is in none of kubernetes.serviceRang": {ServiceRanges: []string{"10.96.0.0/12"}, WholeRanges: []string{"10.0.0.0/8"}},
	} {
		if err := Check(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", c, err, want)
		}
	}
}
