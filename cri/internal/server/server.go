// Package server is the CRI edge: one file per verb, which checks the request, calls the domain and turns its
// answer into a message. It makes no system call and keeps no state; error codes, deadlines, panics and the log
// line are proto/rpc's.
package server

import (
	"context"
	"encoding/json"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/cri/internal/image"
	"github.com/berth-project/berth/cri/internal/pod"
	"github.com/berth-project/berth/proto/errs"
)

// Images is the image service.
type Images interface {
	Pull(ctx context.Context, ref string, auth *image.Auth) (*image.Image, error)
	Get(ref string) (*image.Image, error)
	List() []*image.Image
	Remove(ctx context.Context, ref string) error
	Usage() image.Usage
}

// Network is what Status tells of CNI.
type Network interface {
	Ready(ctx context.Context) error
	Config() (name string, raw json.RawMessage)
}

// Streaming hands out URLs for interactive calls.
type Streaming interface {
	GetExec(*cri.ExecRequest) (*cri.ExecResponse, error)
	GetAttach(*cri.AttachRequest) (*cri.AttachResponse, error)
	GetPortForward(*cri.PortForwardRequest) (*cri.PortForwardResponse, error)
}

// Stats measures pods and containers.
type Stats interface {
	Container(c *pod.Container) (*cri.ContainerStats, error)
	Pod(p *pod.Pod) (*cri.PodSandboxStats, error)
	Metrics(p *pod.Pod) (*cri.PodSandboxMetrics, error)
	Descriptors() []*cri.MetricDescriptor
}

// Info is what the runtime says of itself.
type Info struct {
	Name, Version string
	Handlers      []string                 // beside the built-in one
	Userns        bool                     // the machine has idmapped mounts
	RRO           bool                     // and recursive read-only ones
	Systemd       bool                     // systemd makes the pods' cgroups, and the kubelet must ask it too
	Verbose       func() map[string]string // for a verbose Status
}

// Server implements both CRI services.
type Server struct {
	cri.UnimplementedRuntimeServiceServer
	cri.UnimplementedImageServiceServer

	pods   *pod.Manager
	images Images
	net    Network
	stream Streaming
	stats  Stats
	info   Info
}

// New makes a server.
func New(pods *pod.Manager, images Images, net Network, stream Streaming, stats Stats, info Info) *Server {
	return &Server{pods: pods, images: images, net: net, stream: stream, stats: stats, info: info}
}

// Endless are the methods that have no deadline of ours: watches and transfers.
func Endless() []string {
	return []string{cri.RuntimeService_GetContainerEvents_FullMethodName, cri.ImageService_PullImage_FullMethodName}
}

func need(field, value string) error {
	if value == "" {
		return errs.InvalidArgument.Errorf("%s must be set", field)
	}
	return nil
}

// streamBatch is how many items a streaming list sends in one message: about 1.5 KB each, far below the limit.
const streamBatch = 1000

func inBatches[T any](items []T, send func([]T) error) error {
	for len(items) > 0 {
		n := min(len(items), streamBatch)
		if err := send(items[:n]); err != nil {
			return err
		}
		items = items[n:]
	}
	return nil
}
