package server

import (
	"context"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	dp "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"github.com/berth-project/berth/deviceplugin/internal/alloc"
	"github.com/berth-project/berth/deviceplugin/internal/inventory"
	"github.com/berth-project/berth/deviceplugin/internal/ledger"
	"github.com/berth-project/berth/deviceplugin/internal/node"
	"github.com/berth-project/berth/deviceplugin/internal/policy"
	"github.com/berth-project/berth/internal/failpoint"
	"github.com/berth-project/berth/proto/errs"
)

// allocateLimit is how long Allocate waits for the driver after a boot. The kubelet calls it while it admits a pod
// and has no limit of its own.
const allocateLimit = 30 * time.Second

var (
	failBeforeAllocate = failpoint.New("gpu.allocate.before")
	failAfterAllocate  = failpoint.New("gpu.allocate.after")
	failBeforeList     = failpoint.New("gpu.list.before_send")
)

// Ledger refuses what somebody else holds, and remembers what was given away.
type Ledger interface {
	// Give notes that ids of an offer are given to a container. A device that is held by a claim, or by a container
	// under another offer, is FailedPrecondition, and nothing is noted.
	Give(o ledger.Offer, ids []string) error
}

// plugin serves one resource.
type plugin struct {
	dp.UnimplementedDevicePluginServer
	name   string
	node   *node.Node
	ledger Ledger
	reply  responder

	mu      sync.Mutex
	watched int           // ListAndWatch streams
	gone    chan struct{} // closed when the resource is dropped: an empty list is sent
	scores  scoreCache
}

type scoreCache struct {
	of    *inventory.Node
	score func(a, b string) int
}

func newPlugin(name string, n *node.Node, l Ledger, reply responder) *plugin {
	return &plugin{name: name, node: n, ledger: l, reply: reply, gone: make(chan struct{})}
}

// resource finds the plugin's in a state; nil once it is no longer offered.
func (p *plugin) resource(s *node.State) *policy.Resource {
	i := slices.IndexFunc(s.Plan.Resources, func(r policy.Resource) bool { return r.Rule.Name == p.name })
	if i < 0 {
		return nil
	}
	return &s.Plan.Resources[i]
}

// GetDevicePluginOptions implements dp.DevicePluginServer.
func (p *plugin) GetDevicePluginOptions(context.Context, *dp.Empty) (*dp.DevicePluginOptions, error) {
	return options(), nil
}

func options() *dp.DevicePluginOptions {
	return &dp.DevicePluginOptions{GetPreferredAllocationAvailable: true}
}

// ListAndWatch implements dp.DevicePluginServer: the full list at once, from the cache if need be, and again on
// every change, until the kubelet goes away or the resource is dropped.
func (p *plugin) ListAndWatch(_ *dp.Empty, stream grpc.ServerStreamingServer[dp.ListAndWatchResponse]) error {
	p.watch(1)
	defer p.watch(-1)
	var last *dp.ListAndWatchResponse
	for {
		s, changed := p.node.State()
		next := &dp.ListAndWatchResponse{Devices: devices(p.resource(s))}
		if last == nil || !proto.Equal(last, next) {
			if err := failBeforeList.Hit(); err != nil {
				return err
			}
			if err := stream.Send(next); err != nil {
				return err
			}
			last = next
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-p.gone:
			if len(last.GetDevices()) > 0 {
				return stream.Send(&dp.ListAndWatchResponse{})
			}
			return nil
		}
	}
}

func (p *plugin) watch(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.watched += n
}

// watchers counts the kubelet's streams.
func (p *plugin) watchers() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.watched
}

// Allocate implements dp.DevicePluginServer. It waits, after a boot, until the driver has answered and the CDI
// specification is on disk; then it only looks up.
func (p *plugin) Allocate(ctx context.Context, req *dp.AllocateRequest) (*dp.AllocateResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, allocateLimit)
	defer cancel()
	if err := failBeforeAllocate.Hit(); err != nil {
		return nil, err
	}
	s, err := p.node.Await(ctx)
	if err != nil {
		return nil, err
	}
	r := p.resource(s)
	if r == nil {
		return nil, errs.NotFound.Errorf("%s is no longer offered", p.name)
	}
	out := &dp.AllocateResponse{}
	var ids []string
	for _, c := range req.GetContainerRequests() {
		picked, err := pick(r, c.GetDevicesIds())
		if err != nil {
			return nil, err
		}
		ids = append(ids, c.GetDevicesIds()...)
		out.ContainerResponses = append(out.ContainerResponses, p.reply.answer(r, picked))
	}
	if len(out.GetContainerResponses()) == 0 {
		return nil, errs.InvalidArgument.Errorf("%s: no container_requests", p.name)
	}
	if err := p.ledger.Give(ledger.Offer{Resource: r.Rule.Name, Shares: r.Rule.Shares()}, ids); err != nil {
		return nil, err
	}
	return out, failAfterAllocate.Hit()
}

// GetPreferredAllocation implements dp.DevicePluginServer.
func (p *plugin) GetPreferredAllocation(_ context.Context, req *dp.PreferredAllocationRequest) (*dp.PreferredAllocationResponse, error) {
	s, _ := p.node.State()
	r := p.resource(s)
	if r == nil {
		return nil, errs.NotFound.Errorf("%s is no longer offered", p.name)
	}
	score := p.score(s.Inventory)
	out := &dp.PreferredAllocationResponse{}
	for _, c := range req.GetContainerRequests() {
		one, err := prefer(r, score, c)
		if err != nil {
			return nil, err
		}
		out.ContainerResponses = append(out.ContainerResponses, one)
	}
	return out, nil
}

// score is the table of an inventory, made once for each.
func (p *plugin) score(n *inventory.Node) func(a, b string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.scores.of != n {
		p.scores = scoreCache{n, alloc.Score(n)}
	}
	return p.scores.score
}

// PreStartContainer implements dp.DevicePluginServer. It is not asked for (GetDevicePluginOptions) and has nothing
// to do.
func (p *plugin) PreStartContainer(context.Context, *dp.PreStartContainerRequest) (*dp.PreStartContainerResponse, error) {
	return &dp.PreStartContainerResponse{}, nil
}
