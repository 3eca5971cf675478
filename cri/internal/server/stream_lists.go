package server

import (
	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The streaming lists (KEP-5825) answer as their unary twins do, in batches, each item once, then EOF.

// StreamPodSandboxes is ListPodSandbox in batches.
func (s *Server) StreamPodSandboxes(req *cri.StreamPodSandboxesRequest, out grpc.ServerStreamingServer[cri.StreamPodSandboxesResponse]) error {
	var all []*cri.PodSandbox
	for _, p := range s.podsBy(req.GetFilter()) {
		all = append(all, sandboxItem(p))
	}
	return inBatches(all, func(b []*cri.PodSandbox) error {
		return out.Send(&cri.StreamPodSandboxesResponse{PodSandboxes: b})
	})
}

// StreamContainers is ListContainers in batches.
func (s *Server) StreamContainers(req *cri.StreamContainersRequest, out grpc.ServerStreamingServer[cri.StreamContainersResponse]) error {
	var all []*cri.Container
	for _, c := range s.containersBy(req.GetFilter()) {
		all = append(all, containerItem(c))
	}
	return inBatches(all, func(b []*cri.Container) error {
		return out.Send(&cri.StreamContainersResponse{Containers: b})
	})
}

// StreamContainerStats is ListContainerStats in batches.
func (s *Server) StreamContainerStats(req *cri.StreamContainerStatsRequest, out grpc.ServerStreamingServer[cri.StreamContainerStatsResponse]) error {
	return inBatches(s.containerStats(req.GetFilter()), func(b []*cri.ContainerStats) error {
		return out.Send(&cri.StreamContainerStatsResponse{ContainerStats: b})
	})
}

// StreamPodSandboxStats is ListPodSandboxStats in batches.
func (s *Server) StreamPodSandboxStats(req *cri.StreamPodSandboxStatsRequest, out grpc.ServerStreamingServer[cri.StreamPodSandboxStatsResponse]) error {
	return inBatches(s.podStats(req.GetFilter()), func(b []*cri.PodSandboxStats) error {
		return out.Send(&cri.StreamPodSandboxStatsResponse{PodSandboxStats: b})
	})
}

// StreamPodSandboxMetrics is ListPodSandboxMetrics in batches.
func (s *Server) StreamPodSandboxMetrics(_ *cri.StreamPodSandboxMetricsRequest, out grpc.ServerStreamingServer[cri.StreamPodSandboxMetricsResponse]) error {
	return inBatches(s.podMetrics(), func(b []*cri.PodSandboxMetrics) error {
		return out.Send(&cri.StreamPodSandboxMetricsResponse{PodSandboxMetrics: b})
	})
}

// StreamImages is ListImages in batches.
func (s *Server) StreamImages(req *cri.StreamImagesRequest, out grpc.ServerStreamingServer[cri.StreamImagesResponse]) error {
	return inBatches(s.imagesBy(req.GetFilter()), func(b []*cri.Image) error {
		return out.Send(&cri.StreamImagesResponse{Images: b})
	})
}
