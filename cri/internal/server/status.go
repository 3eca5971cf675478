package server

import (
	"context"
	"encoding/json"
	"slices"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Status says whether pods can run and what this machine can do. Handlers are in a stable order, because the
// kubelet compares lists.
func (s *Server) Status(ctx context.Context, req *cri.StatusRequest) (*cri.StatusResponse, error) {
	network := &cri.RuntimeCondition{Type: cri.NetworkReady, Status: true}
	if err := s.net.Ready(ctx); err != nil {
		network.Status, network.Reason, network.Message = false, "NetworkPluginNotReady", err.Error()
	}
	resp := &cri.StatusResponse{
		Status: &cri.RuntimeStatus{Conditions: []*cri.RuntimeCondition{
			{Type: cri.RuntimeReady, Status: true}, network,
		}},
		Features: &cri.RuntimeFeatures{SupplementalGroupsPolicy: true, UserNamespacesHostNetwork: s.info.Userns, MountOptions: true},
	}
	own := &cri.RuntimeHandlerFeatures{RecursiveReadOnlyMounts: s.info.RRO, UserNamespaces: s.info.Userns}
	for _, name := range []string{"", "berth"} {
		resp.RuntimeHandlers = append(resp.RuntimeHandlers, &cri.RuntimeHandler{Name: name, Features: own})
	}
	for _, name := range slices.Sorted(slices.Values(s.info.Handlers)) {
		resp.RuntimeHandlers = append(resp.RuntimeHandlers, &cri.RuntimeHandler{Name: name, Features: &cri.RuntimeHandlerFeatures{}})
	}
	if req.GetVerbose() {
		name, raw := s.net.Config()
		b, err := json.Marshal(map[string]any{"network": name, "cniConfig": raw})
		if err != nil {
			return nil, err
		}
		resp.Info = map[string]string{"network": string(b)}
		if s.info.Verbose != nil {
			for k, v := range s.info.Verbose() {
				resp.Info[k] = v
			}
		}
	}
	return resp, nil
}
