package server

import (
	"encoding/json"
	"fmt"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/cri/internal/pod"
)

// imageSpec is what a container was made from, its user's words first.
func imageSpec(c *pod.Container) *cri.ImageSpec {
	i := c.Config.GetImage()
	name := i.GetUserSpecifiedImage()
	if name == "" {
		name = i.GetImage()
	}
	return &cri.ImageSpec{Image: name, Annotations: i.GetAnnotations(), UserSpecifiedImage: i.GetUserSpecifiedImage(), RuntimeHandler: i.GetRuntimeHandler()}
}

func containerItem(c *pod.Container) *cri.Container {
	return &cri.Container{
		Id: c.ID, PodSandboxId: c.PodID, Metadata: c.Config.GetMetadata(), Image: imageSpec(c), ImageRef: c.ImageID,
		ImageId: c.ImageID, State: c.State().CRI(), CreatedAt: c.CreatedAt.UnixNano(),
		Labels: c.Config.GetLabels(), Annotations: c.Config.GetAnnotations(),
	}
}

func containerStatus(c *pod.Container) *cri.ContainerStatus {
	st := c.State()
	s := &cri.ContainerStatus{
		Id: c.ID, Metadata: c.Config.GetMetadata(), State: st.CRI(), CreatedAt: c.CreatedAt.UnixNano(),
		Image: imageSpec(c), ImageRef: c.ImageID, ImageId: c.ImageID, Reason: st.Reason, Message: st.Message,
		Labels: c.Config.GetLabels(), Annotations: c.Config.GetAnnotations(), Mounts: c.Config.GetMounts(),
		LogPath: c.LogPath, Resources: &cri.ContainerResources{Linux: st.Resources},
		User: &cri.ContainerUser{Linux: c.User}, StopSignal: stopSignal(c),
	}
	if !st.StartedAt.IsZero() {
		s.StartedAt = st.StartedAt.UnixNano()
	}
	if !st.FinishedAt.IsZero() {
		s.FinishedAt = st.FinishedAt.UnixNano()
		s.ExitCode = int32(st.Exit.Code) //nolint:gosec // 0 to 255
	}
	return s
}

// stopSignal is the effective one, whoever chose it.
func stopSignal(c *pod.Container) cri.Signal {
	name := unix.SignalName(c.Stop)
	const rtmin, rtmax, half = 34, 64, 49 // the CRI names the lower ones from RTMIN, the upper ones from RTMAX
	switch n := int(c.Stop); {
	case n == rtmin:
		name = "SIGRTMIN"
	case n > rtmin && n <= half:
		name = fmt.Sprintf("SIGRTMINPLUS%d", n-rtmin)
	case n == rtmax:
		name = "SIGRTMAX"
	case n > half && n < rtmax:
		name = fmt.Sprintf("SIGRTMAXMINUS%d", rtmax-n)
	}
	if n, ok := cri.Signal_value["SIGNAL_"+name]; ok {
		return cri.Signal(n)
	}
	return cri.Signal_SIGNAL_RUNTIME_DEFAULT
}

func containerInfo(c *pod.Container) (map[string]string, error) {
	st := c.State()
	b, err := json.Marshal(struct {
		SandboxID string               `json:"sandboxID"`
		Pid       int                  `json:"pid"`
		Exit      any                  `json:"exit,omitempty"`
		Config    *cri.ContainerConfig `json:"config"`
	}{c.PodID, st.Pid, st.Exit, c.Config})
	return map[string]string{"info": string(b)}, err
}

// containersBy lists the containers a filter selects. An id that is not there, or is not unique, selects none.
func (s *Server) containersBy(f *cri.ContainerFilter) []*pod.Container {
	all := s.pods.Containers()
	if f.GetId() != "" {
		c, err := s.pods.Container(f.GetId())
		if err != nil {
			return nil
		}
		all = []*pod.Container{c}
	}
	podID := f.GetPodSandboxId()
	if podID != "" {
		p, err := s.pods.Pod(podID)
		if err != nil {
			return nil
		}
		podID = p.ID
	}
	var out []*pod.Container
	for _, c := range all {
		if podID != "" && c.PodID != podID {
			continue
		}
		if f.GetState() != nil && c.State().CRI() != f.GetState().GetState() {
			continue
		}
		if labelled(c.Config.GetLabels(), f.GetLabelSelector()) {
			out = append(out, c)
		}
	}
	return out
}
