package server

import (
	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/proto/errs"
)

// GetContainerEvents sends every change from now on until the client leaves. A client that falls too far behind
// is cut off with Aborted, and lists anew; so is everybody when the daemon stops.
func (s *Server) GetContainerEvents(_ *cri.GetEventsRequest, out grpc.ServerStreamingServer[cri.ContainerEventResponse]) error {
	events, end := s.pods.Subscribe()
	defer end()
	for {
		select {
		case e, ok := <-events:
			if !ok {
				return errs.Aborted.Errorf("the client fell behind, or the daemon stops: list and subscribe anew")
			}
			msg := &cri.ContainerEventResponse{
				ContainerId: e.Container, ContainerEventType: e.Type, CreatedAt: e.At.UnixNano(),
				PodSandboxStatus: &cri.PodSandboxStatus{Id: e.Pod, Metadata: &cri.PodSandboxMetadata{}},
			}
			if p, err := s.pods.Pod(e.Pod); err == nil {
				msg.PodSandboxStatus = sandboxStatus(p)
				for _, c := range s.pods.ContainersOf(p.ID) {
					msg.ContainersStatuses = append(msg.ContainersStatuses, containerStatus(c))
				}
			}
			if err := out.Send(msg); err != nil {
				return err
			}
		case <-out.Context().Done():
			return nil
		}
	}
}
