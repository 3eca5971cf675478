package kube

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-project/berth/cni/internal/fabric"
)

func object(annotations map[string]string, blocks ...string) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "n1", UID: "u", Annotations: annotations},
		Spec:       corev1.NodeSpec{PodCIDRs: blocks},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
			{Type: corev1.NodeHostName, Address: "n1"},
			{Type: corev1.NodeInternalIP, Address: "192.0.2.1"},
			{Type: corev1.NodeInternalIP, Address: "192.0.2.100"},
			{Type: corev1.NodeInternalIP, Address: "2001:db8::1"},
		}},
	}
}

func TestNodes(t *testing.T) {
	n, err := nodeOf(object(map[string]string{annotationMTU: "1400", annotationSegment: "a"}, "10.0.1.0/24", "fd00::/64"), false)
	if err != nil || len(n.PodCIDRs) != 2 || len(n.Addresses) != 2 || n.MTU != 1400 || n.Segment != "a" || n.UID != "u" {
		t.Errorf("%+v, %v", n, err)
	}
	for _, c := range []struct {
		annotations map[string]string
		block, want string
	}{
		{nil, "10.0.1", "spec.podCIDRs"},
		{map[string]string{annotationMTU: "big"}, "", annotationMTU},
		{map[string]string{annotationSegment: strings.Repeat("x", maxAnnotation+1)}, "", "bytes long"},
		{map[string]string{flannelPublic: "2001:db8::1"}, "", "no address of its family"},
		{map[string]string{flannelData: "{"}, "", flannelData},
		{map[string]string{flannelData: `{"VtepMAC":"01:00:00:00:00:01"}`}, "", "unicast"},
	} {
		var blocks []string
		if c.block != "" {
			blocks = []string{c.block}
		}
		if _, err := nodeOf(object(c.annotations, blocks...), true); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: %v, want %q", c.annotations, err, c.want)
		}
	}
}

// TestFlannelReadsWhatWeWrite: what is published is read back as it was, and is what flannel itself would have written.
func TestFlannelReadsWhatWeWrite(t *testing.T) {
	n, err := nodeOf(object(map[string]string{flannelData: `{"VNI":1,"VtepMAC":"a2:73:96:af:bf:d4"}`, flannelPublic: "192.0.2.9"}, "10.0.1.0/24"), true)
	if err != nil {
		t.Fatal(err)
	}
	said, err := publish(n, fabric.VXLAN)
	if err != nil {
		t.Fatal(err)
	}
	if said[flannelData] != `{"VNI":1,"VtepMAC":"a2:73:96:af:bf:d4"}` || said[flannelPublic] != "192.0.2.9" || said[flannelType] != "vxlan" || said[flannelKube] != "true" {
		t.Errorf("%v", said)
	}
	again, err := nodeOf(object(said, "10.0.1.0/24"), true)
	if err != nil || again.MAC(false) != n.MAC(false) || again.Address(false) != n.Address(false) || again.MAC(true) != n.MAC(true) {
		t.Errorf("%+v, %v, was %+v", again, err, n)
	}
	if said, err := publish(n, fabric.HostGW); err != nil || said[flannelType] != "host-gw" || said[flannelData] != "null" {
		t.Errorf("%v, %v", said, err)
	}
}

// TestStore: an object that turns wrong keeps what it was, and is named until it is right or gone.
func TestStore(t *testing.T) {
	changed := make(chan struct{}, 1)
	s := newStore("pool", changed, func(obj any) (fabric.Pool, error) { return poolOf(obj.(*NetworkPool)) })
	pool := func(cidr string) *NetworkPool {
		return &NetworkPool{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: NetworkPoolSpec{CIDRs: []string{cidr}}}
	}
	if _, _, ok := s.all(); ok {
		t.Error("listed before any list")
	}
	if err := s.Replace([]any{pool("10.0.0.0/8")}, "1"); err != nil {
		t.Fatal(err)
	}
	<-changed
	if err := s.Update(pool("10.0.0.1/8")); err != nil {
		t.Fatal(err)
	}
	all, remarks, ok := s.all()
	if !ok || len(all) != 1 || all[0].CIDRs[0].String() != "10.0.0.0/8" || len(remarks) != 1 || !strings.Contains(remarks[0], "pool p: ") {
		t.Errorf("%v, %q, %v", all, remarks, ok)
	}
	if err := s.Delete(pool("10.0.0.0/8")); err != nil {
		t.Fatal(err)
	}
	if all, remarks, _ := s.all(); len(all)+len(remarks) != 0 {
		t.Errorf("%v, %q", all, remarks)
	}
}

// TestStoreTellsNews: an object that was written, but not in what is read from it, is not told.
func TestStoreTellsNews(t *testing.T) {
	src := &Source{node: "n1", dirty: make(chan struct{}, 1)}
	src.nodes = newStore("node", src.dirty, src.readNode)
	told := func() bool {
		select {
		case <-src.dirty:
			return true
		default:
			return false
		}
	}
	node := func(version string, annotations map[string]string, block string) *corev1.Node {
		n := object(annotations, block)
		n.ResourceVersion = version
		return n
	}
	flannel := map[string]string{flannelKube: "true"}
	for _, c := range []struct {
		what string
		do   func() error
		want bool
	}{
		{"the first list", func() error { return src.nodes.Replace([]any{node("1", flannel, "10.0.1.0/24")}, "1") }, true},
		{"a heartbeat", func() error { return src.nodes.Update(node("2", flannel, "10.0.1.0/24")) }, false},
		{"the same list", func() error { return src.nodes.Replace([]any{node("2", flannel, "10.0.1.0/24")}, "2") }, false},
		{"another block", func() error { return src.nodes.Update(node("3", flannel, "10.0.2.0/24")) }, true},
		{"an annotation that we write", func() error { return src.nodes.Update(node("4", nil, "10.0.2.0/24")) }, true},
		{"wrong", func() error { return src.nodes.Update(node("5", nil, "10.0.2")) }, true},
		{"as wrong", func() error { return src.nodes.Update(node("6", nil, "10.0.2")) }, false},
		{"right again", func() error { return src.nodes.Update(node("7", nil, "10.0.2.0/24")) }, true},
		{"gone", func() error { return src.nodes.Delete(node("8", nil, "10.0.2.0/24")) }, true},
		{"gone twice", func() error { return src.nodes.Delete(node("8", nil, "10.0.2.0/24")) }, false},
		{"an empty list", func() error { return src.nodes.Replace(nil, "9") }, false},
	} {
		if err := c.do(); err != nil {
			t.Fatal(err)
		}
		if got := told(); got != c.want {
			t.Errorf("%s: told %v", c.what, got)
		}
	}
}

func TestPeers(t *testing.T) {
	p, err := peerOf(&BGPPeer{ObjectMeta: metav1.ObjectMeta{Name: "left"}, Spec: BGPPeerSpec{Address: "192.0.2.254", ASN: 65000, BFD: true}})
	if err != nil || p.Name != "left" || !p.BFD || p.ASN != 65000 {
		t.Errorf("%+v, %v", p, err)
	}
	for _, bad := range []BGPPeerSpec{{Address: "left", ASN: 1}, {Address: "192.0.2.1"}} {
		if _, err := peerOf(&BGPPeer{Spec: bad}); err == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
}

func FuzzAnnotations(f *testing.F) {
	f.Add(`{"VNI":1,"VtepMAC":"a2:73:96:af:bf:d4"}`, "192.0.2.9", "1400")
	f.Fuzz(func(_ *testing.T, data, public, mtu string) {
		n, err := nodeOf(object(map[string]string{flannelData: data, flannelPublic: public, annotationMTU: mtu}, "10.0.1.0/24"), true)
		if err == nil {
			_, _ = publish(n, fabric.VXLAN) // must return
		}
	})
}
