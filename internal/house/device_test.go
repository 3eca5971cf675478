package house

// deviceRules are those of the GPU device plugin.
func deviceRules(leaves []string) []rule {
	return []rule{
		// deviceplugin, from the leaves up; inventory, alloc, policy and health are pure
		{path: "deviceplugin/internal/inventory", ban: []string{osPkg, osExec, http, grpc}},
		{path: "deviceplugin/internal/alloc", own: append(leaves, "deviceplugin/internal/inventory"), ban: []string{osPkg, osExec, http, grpc}},
		{path: "deviceplugin/internal/health", ban: []string{osPkg, osExec, http, grpc}},
		{path: "deviceplugin/internal/policy", own: append(leaves, "deviceplugin/internal/inventory", "deviceplugin/internal/alloc"), ban: []string{osPkg, osExec, http, grpc}},
		{path: "deviceplugin/internal/driver", own: append(leaves, "deviceplugin/internal/inventory"), foreign: []string{sys}, ban: []string{osExec, http, grpc}},
		{path: "deviceplugin/internal/cdi", own: append(leaves, "deviceplugin/internal/inventory", "deviceplugin/internal/driver", "deviceplugin/internal/discovery/fake"), foreign: []string{cdiSpecs}, ban: []string{osExec, http, grpc}},
		{path: "deviceplugin/internal/ledger", own: leaves, ban: []string{osExec, http, grpc}},
		{path: "deviceplugin/internal/discovery", own: append(leaves, "deviceplugin/internal/inventory", "deviceplugin/internal/health", "deviceplugin/internal/driver"), foreign: []string{sys, "sigs.k8s.io/yaml", "github.com/NVIDIA/go-nvml"}, ban: []string{http, grpc}},
		{path: "deviceplugin/internal/discovery/nvml", own: append(leaves, "deviceplugin/internal/inventory", "deviceplugin/internal/health", "deviceplugin/internal/discovery"), foreign: []string{"github.com/NVIDIA/go-nvml"}, ban: []string{osExec, http, grpc}},
		{path: "deviceplugin/internal/config", own: append(leaves, "deviceplugin/internal"), foreign: []string{"github.com/pelletier/go-toml"}, ban: []string{osExec, http, grpc}},
		{path: "deviceplugin/internal/node", own: append(leaves, "deviceplugin/internal"), foreign: []string{cdiSpecs}, ban: []string{osExec, http, grpc, "deviceplugin/internal/server"}},
		{path: "deviceplugin/internal/server", own: append(leaves, "proto/rpc", "deviceplugin/internal"), foreign: []string{grpc, "google.golang.org/protobuf", "k8s.io/kubelet"}, ban: []string{osExec, http}},
		{path: "deviceplugin/internal/dra", own: append(leaves, "deviceplugin/internal/view", "deviceplugin/internal/inventory"), foreign: []string{k8s}, ban: []string{osPkg, osExec, http, grpc}},
		{path: "deviceplugin/internal/dra/core", own: append(leaves, "deviceplugin/internal/view"), ban: []string{osPkg, osExec, grpc, k8s}},
		{path: "deviceplugin/internal/mps", own: leaves, foreign: []string{sys}, ban: []string{http, grpc}},
		{path: "deviceplugin/internal/view", own: append(leaves, "deviceplugin/internal"), ban: []string{osPkg, osExec, http, grpc}},
		{path: "deviceplugin/internal/kubenode", own: leaves, foreign: []string{"sigs.k8s.io/yaml"}, ban: []string{osExec, grpc, k8s}},
		{path: "deviceplugin/internal/podresources", own: append(leaves, "proto/rpc", "deviceplugin/internal/view"), foreign: []string{grpc, "k8s.io/kubelet"}, ban: []string{osExec, http}},
		{path: "deviceplugin/cmd", own: append(leaves, "proto", "deviceplugin/internal"), foreignIsFree: true, ban: []string{osExec}},
	}
}
