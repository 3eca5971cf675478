package server

import (
	"encoding/json"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/cri/internal/pod"
)

func sandboxState(st pod.PodState) cri.PodSandboxState {
	if st.Ready {
		return cri.PodSandboxState_SANDBOX_READY
	}
	return cri.PodSandboxState_SANDBOX_NOTREADY
}

func sandboxItem(p *pod.Pod) *cri.PodSandbox {
	return &cri.PodSandbox{
		Id: p.ID, Metadata: p.Config.GetMetadata(), State: sandboxState(p.State()), CreatedAt: p.CreatedAt.UnixNano(),
		Labels: p.Config.GetLabels(), Annotations: p.Config.GetAnnotations(), RuntimeHandler: p.Handler,
	}
}

func sandboxStatus(p *pod.Pod) *cri.PodSandboxStatus {
	st := p.State()
	s := &cri.PodSandboxStatus{
		Id: p.ID, Metadata: p.Config.GetMetadata(), State: sandboxState(st), CreatedAt: p.CreatedAt.UnixNano(),
		Labels: p.Config.GetLabels(), Annotations: p.Config.GetAnnotations(), RuntimeHandler: p.Handler,
		Network: &cri.PodSandboxNetworkStatus{},
		Linux: &cri.LinuxPodSandboxStatus{Namespaces: &cri.Namespace{
			Options: p.Config.GetLinux().GetSecurityContext().GetNamespaceOptions(),
		}},
	}
	if st.Ready && len(st.IPs) > 0 {
		s.Network.Ip = st.IPs[0]
		for _, ip := range st.IPs[1:] {
			s.Network.AdditionalIps = append(s.Network.AdditionalIps, &cri.PodIP{Ip: ip})
		}
	}
	return s
}

// sandboxInfo is the verbose part: what `crictl inspectp` shows under "info".
func sandboxInfo(p *pod.Pod) (map[string]string, error) {
	st := p.State()
	b, err := json.Marshal(struct {
		Handler   string          `json:"runtimeHandler"`
		Network   string          `json:"network,omitempty"`
		CNIResult json.RawMessage `json:"cniResult,omitempty"`
		Cgroup    string          `json:"cgroupParent,omitempty"`
	}{p.Handler, st.Network, st.Result, p.Config.GetLinux().GetCgroupParent()})
	return map[string]string{"info": string(b)}, err
}

func podMatches(p *pod.Pod, f *cri.PodSandboxFilter) bool {
	if f == nil {
		return true
	}
	if f.GetState() != nil && f.GetState().GetState() != sandboxState(p.State()) {
		return false
	}
	return labelled(p.Config.GetLabels(), f.GetLabelSelector())
}

func labelled(labels, selector map[string]string) bool {
	for k, v := range selector {
		if have, ok := labels[k]; !ok || have != v {
			return false
		}
	}
	return true
}

// podsBy lists the pods a filter selects. An id that is not there, or is not unique, selects none.
func (s *Server) podsBy(f *cri.PodSandboxFilter) []*pod.Pod {
	all := s.pods.Pods()
	if f.GetId() != "" {
		p, err := s.pods.Pod(f.GetId())
		if err != nil {
			return nil
		}
		all = []*pod.Pod{p}
	}
	var out []*pod.Pod
	for _, p := range all {
		if podMatches(p, f) {
			out = append(out, p)
		}
	}
	return out
}
