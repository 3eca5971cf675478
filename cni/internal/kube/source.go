package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/berth-project/berth/cni/internal/agent"
	"github.com/berth-project/berth/cni/internal/fabric"
	"github.com/berth-project/berth/cni/internal/netdconf"
	"github.com/berth-project/berth/cni/internal/overlay"
)

// Times: how long changes are gathered before the model is made anew, when a refused publication is tried again, and how
// long a first list may take at first and at most.
const (
	gather       = 20 * time.Millisecond
	publishAgain = 2 * time.Second
	firstList    = 5 * time.Second
	longList     = 120 * time.Second
	overdue      = 30 * time.Second // then status says that a list has not come
)

// Source is a cluster. Use [New].
type Source struct {
	conf  netdconf.Kubernetes
	node  string
	log   *slog.Logger
	core  rest.Interface
	net   rest.Interface
	nodes *store[fabric.Node]
	pools *store[pool]
	// blocks are watched once a pool is given out in such.
	blocks *store[block]
	// sizes are those of the blocks of each pool, as they were when the model was made.
	sizes map[string][2]int
	peers *store[fabric.BGPPeer]
	// What is told of services, where any is: ranges, whole prefixes, and the objects.
	ranges, whole []netip.Prefix
	discovery     rest.Interface
	services      *store[service]
	slices        *store[endpoints]
	dirty         chan struct{}
	// said is what the node's annotations were when they were last seen.
	said map[string]string
	mu   sync.Mutex
}

// Check is what is wrong with the part of the fabric that the configuration holds; each error names the key.
func Check(conf netdconf.Kubernetes) error {
	var all []error
	if err := fabric.CheckTopology(conf.Topology); err != nil {
		all = append(all, fmt.Errorf("kubernetes.topology: %w", err))
	}
	if err := fabric.CheckASN(conf.ASN); err != nil {
		all = append(all, fmt.Errorf("kubernetes.asn: %w", err))
	}
	_, _, err := serviceRanges(conf)
	all = append(all, err)
	return errors.Join(all...)
}

// New prepares the connection; nothing is sent yet.
func New(conf netdconf.Kubernetes, node string, log *slog.Logger) (*Source, error) {
	if err := Check(conf); err != nil {
		return nil, err
	}
	rc, err := clientcmd.BuildConfigFromFlags("", conf.Kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("kubernetes: %w", err)
	}
	rc.QPS, rc.Burst, rc.UserAgent = 20, 40, "berth-netd"
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		return nil, err
	}
	scheme.AddKnownTypes(groupVersion(), &NetworkPool{}, &NetworkPoolList{}, &BGPPeer{}, &BGPPeerList{}, &NetworkBlock{}, &NetworkBlockList{})
	metav1.AddToGroupVersion(scheme, groupVersion())
	s := &Source{conf: conf, node: node, log: log, dirty: make(chan struct{}, 1)}
	if s.core, err = client(rc, scheme, corev1.SchemeGroupVersion, "/api", runtime.ContentTypeProtobuf); err != nil {
		return nil, err
	}
	if s.net, err = client(rc, scheme, groupVersion(), "/apis", runtime.ContentTypeJSON); err != nil {
		return nil, err
	}
	if err := s.prepareServices(rc, scheme); err != nil {
		return nil, err
	}
	s.nodes = newStore("node", s.dirty, s.readNode)
	s.peers = newStore("BGP peer", s.dirty, peerOf)
	s.pools = newStore("pool", s.dirty, readPool)
	s.blocks = newStore("block", s.dirty, blockOf)
	return s, nil
}

func client(rc *rest.Config, scheme *runtime.Scheme, gv schema.GroupVersion, path, content string) (rest.Interface, error) {
	c := rest.CopyConfig(rc)
	c.GroupVersion, c.APIPath, c.ContentType = &gv, path, content
	c.AcceptContentTypes = content + "," + runtime.ContentTypeJSON
	c.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	return rest.RESTClientFor(c)
}

// Name implements [agent.Source].
func (s *Source) Name() string { return "kubernetes" }

func (s *Source) readNode(obj any) (fabric.Node, error) {
	n, ok := obj.(*corev1.Node)
	if !ok {
		return fabric.Node{}, fmt.Errorf("is a %T", obj)
	}
	if n.Name == s.node {
		s.hear(n.Annotations)
	}
	out, err := nodeOf(n, s.conf.Flannel)
	if n.Name == s.node {
		out.Labels = n.Labels // asked for by its peers' selectors, and for services
		return out, err
	}
	for k := range s.conf.Reflectors { // of others nothing else is asked
		if v, ok := n.Labels[k]; ok {
			out.Labels = with(out.Labels, k, v)
		}
	}
	return out, err
}

func with(m map[string]string, k, v string) map[string]string {
	if m == nil {
		m = map[string]string{}
	}
	m[k] = v
	return m
}

// hear notes what this node's annotations are. One that somebody changed is published again, also where nothing is read
// from it.
func (s *Source) hear(annotations map[string]string) {
	said := map[string]string{}
	for _, key := range []string{flannelType, flannelData, flannelData6, flannelPublic, flannelPublic6, flannelKube} {
		if v, ok := annotations[key]; ok {
			said[key] = v
		}
	}
	s.mu.Lock()
	news := !maps.Equal(said, s.said)
	s.said = said
	s.mu.Unlock()
	if news {
		s.nodes.tell()
	}
}

// Run implements [agent.Source]: it watches until ctx ends. While the API server is away nothing is delivered, and what
// was delivered stays.
func (s *Source) Run(ctx context.Context, deliver func(agent.Delivery)) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { watch(ctx, s.core, "nodes", &corev1.Node{}, s.nodes) })
	if len(s.conf.FlannelNetwork) == 0 {
		wg.Go(func() { watch(ctx, s.net, "networkpools", &NetworkPool{}, s.pools) })
		wg.Go(func() { watch(ctx, s.net, "bgppeers", &BGPPeer{}, s.peers) })
	}
	if len(s.ranges) > 0 {
		wg.Go(func() { watch(ctx, s.core, "services", &corev1.Service{}, s.services) })
		wg.Go(func() { watch(ctx, s.discovery, "endpointslices", &discoveryv1.EndpointSlice{}, s.slices) })
	}
	watchBlocks := sync.OnceFunc(func() {
		wg.Go(func() { watch(ctx, s.net, "networkblocks", &NetworkBlock{}, s.blocks) })
	})
	again, start := time.NewTimer(publishAgain), time.Now()
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-again.C:
		case <-s.dirty:
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(gather):
			}
		}
		if s.sharesPools() {
			watchBlocks()
		}
		d, missing := s.build()
		if len(missing) > 0 {
			again.Reset(publishAgain)
			if time.Since(start) > overdue {
				deliver(agent.Delivery{Err: fmt.Errorf("the API server has not listed %s: is it reached, and may this agent list them?", strings.Join(missing, ", "))})
			}
			continue
		}
		deliver(d)
		if err := s.tellAll(ctx, d); err != nil {
			s.log.Warn("the API server does not take what this node says; it is said again", "error", err)
			again.Reset(publishAgain)
		}
	}
}

// listing is a store that knows whether its first list has come.
type listing interface {
	cache.ReflectorStore
	wasListed() bool
}

// watch keeps a store up to date until ctx ends.
func watch(ctx context.Context, c rest.Interface, resource string, example runtime.Object, to listing) {
	untilListed(ctx, to.wasListed, func(ctx context.Context) {
		lw := cache.NewListWatchFromClient(c, resource, metav1.NamespaceAll, fields.Everything())
		cache.NewReflectorWithOptions(lw, example, to, cache.ReflectorOptions{Name: resource}).RunWithContext(ctx)
	})
}

// untilListed runs until ctx ends. A first list that does not come is asked for again: a server whose definition of the
// resource is being made may take a watch and never answer it. Each attempt may take twice as long as the one before: a
// server that is slow because all nodes ask it would never be done with any of them.
func untilListed(ctx context.Context, listed func() bool, run func(context.Context)) {
	for limit := firstList; ctx.Err() == nil; limit = min(2*limit, longList) {
		attempt, cancel := context.WithCancel(ctx)
		late := time.AfterFunc(limit, func() {
			if !listed() {
				cancel()
			}
		})
		run(attempt)
		late.Stop()
		cancel()
	}
}

// build makes the model of what is in the stores; missing are the resources that were not listed yet.
func (s *Source) build() (d agent.Delivery, missing []string) {
	need := func(listed bool, resource string) {
		if !listed {
			missing = append(missing, resource)
		}
	}
	nodes, remarks, ok := s.nodes.all()
	objects, more, listed := s.pools.all()
	var pools []fabric.Pool
	s.sizes = map[string][2]int{}
	for _, p := range objects {
		pools, s.sizes[p.Name] = append(pools, p.Pool), p.bits
	}
	peers, wrong, peered := s.peers.all()
	if len(s.conf.FlannelNetwork) > 0 {
		p, err := s.flannelPool()
		if err != nil {
			return agent.Delivery{Err: err}, nil
		}
		pools, listed, peered = []fabric.Pool{p}, true, true
	}
	need(ok, "nodes")
	need(listed, "networkpools")
	need(peered, "bgppeers")
	f := &fabric.Fabric{Pools: pools, Nodes: nodes, BGP: fabric.BGP{
		ASN: s.conf.ASN, Topology: s.conf.Topology, PasswordFile: s.conf.PasswordFile, Reflectors: s.conf.Reflectors, Peers: peers,
		ServiceRanges: s.ranges,
	}}
	if len(s.ranges) > 0 {
		services, more1, listed := s.services.all()
		ends, more2, also := s.slices.all()
		need(listed, "services")
		need(also, "endpointslices")
		self, _ := f.Node(s.node)
		f.BGP.Services = told(s.whole, services, ends, self)
		if n := len(f.BGP.Services); n > maxTold {
			f.BGP.Services = f.BGP.Services[:maxTold]
			wrong = append(wrong, fmt.Sprintf("services: %d addresses are told, %d are not", maxTold, n-maxTold))
		}
		more = slices.Concat(more, more1, more2)
	}
	wrong = append(wrong, f.Salvage()...)
	if len(shared(pools)) > 0 {
		blocks, bad, listed := s.blocks.all()
		need(listed, "networkblocks")
		wrong = slices.Concat(wrong, bad, giveBlocks(f, blocks))
	}
	d = agent.Delivery{Fabric: f, Remarks: slices.Concat(remarks, more, wrong)}
	if s.conf.Flannel {
		d.Names = overlay.FlannelNames(flannelVNI)
	}
	return d, missing
}

func (s *Source) flannelPool() (fabric.Pool, error) {
	p := fabric.Pool{Name: "flannel", Mode: fabric.Mode(s.conf.FlannelBackend)}
	for _, c := range s.conf.FlannelNetwork {
		cidr, err := netip.ParsePrefix(c)
		if err != nil {
			return p, fmt.Errorf("kubernetes.flannelNetwork: %w", err)
		}
		p.CIDRs = append(p.CIDRs, cidr)
	}
	return p, nil
}

// tellAll is what the node says to the cluster: which blocks it takes, and what flannel on other nodes reads.
func (s *Source) tellAll(ctx context.Context, d agent.Delivery) error {
	if d.Fabric == nil {
		return nil
	}
	return errors.Join(s.claim(ctx, d.Fabric), s.publish(ctx, d))
}

// sharesPools says whether any pool is given out in blocks.
func (s *Source) sharesPools() bool {
	all, _, _ := s.pools.all()
	return slices.ContainsFunc(all, func(p pool) bool { return len(p.Namespaces) > 0 })
}

// publish writes the node's annotations where flannel on other nodes reads them, if they are not so already.
func (s *Source) publish(ctx context.Context, d agent.Delivery) error {
	if !s.conf.Flannel {
		return nil
	}
	self, ok := d.Fabric.Node(s.node)
	if !ok {
		return nil
	}
	mode := fabric.VXLAN
	if len(d.Fabric.Pools) > 0 {
		mode = d.Fabric.Pools[0].EffectiveMode()
	}
	want, err := publish(self, mode)
	if err != nil {
		return err
	}
	s.mu.Lock()
	same := true
	for k, v := range want {
		same = same && s.said[k] == v
	}
	s.mu.Unlock()
	if same {
		return nil
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": want}})
	if err != nil {
		return err
	}
	return s.core.Patch(types.MergePatchType).Resource("nodes").Name(s.node).Body(patch).Do(ctx).Error()
}
