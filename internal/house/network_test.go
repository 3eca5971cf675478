package house

import "slices"

// networkRules are those of the network agent and its speaker.
func networkRules(leaves []string) []rule {
	with := func(more ...string) []string { return append(slices.Clone(leaves), more...) }
	return []rule{
		// berth-netd, from the leaves up; fabric and overlay are pure
		{path: "cni/internal/strictyaml", own: []string{"internal/nearest"}, foreign: []string{yaml}, ban: []string{osPkg, osExec, http}},
		{path: "cni/internal/fabric", own: []string{"internal/nearest", "cni/internal/strictyaml"}, ban: []string{osPkg, osExec, http}},
		{path: "cni/internal/overlay", own: []string{"cni/internal/fabric"}, ban: []string{osPkg, osExec, http}},
		{
			path: "cni/internal/datapath",
			own:  []string{"internal/failpoint", "cni/internal/fabric", "cni/internal/overlay", "cni/internal/rtnl", "cni/internal/nft", "cni/internal/nlwire"}, foreign: []string{sys}, ban: []string{osExec, http},
		},
		{path: "cni/internal/udptun", own: []string{"cni/internal/fabric", "cni/internal/overlay", "cni/internal/rtnl", "cni/internal/nlwire"}, foreign: []string{sys}, ban: []string{osExec, http}},
		{path: "cni/internal/offload", foreign: []string{sys}, own: []string{"internal/atomicfile"}, ban: []string{osExec, http}},
		{path: "cni/internal/netdconf", own: []string{"cni/internal/strictyaml"}, foreign: []string{yaml}, ban: []string{osExec, http}},
		{
			path: "cni/internal/agent",
			own:  with("cni/internal/fabric", "cni/internal/overlay", "cni/internal/datapath", "cni/internal/netdconf", "cni/internal/offload", "cni/internal/resident", "cni/internal/udptun"), foreign: []string{yaml, "github.com/fsnotify/fsnotify"}, ban: []string{osExec, k8s},
		},
		{
			path: "cni/internal/kube", own: with("cni/internal/agent", "cni/internal/fabric", "cni/internal/overlay", "cni/internal/netdconf"),
			foreign: []string{k8s}, ban: []string{osPkg, osExec, k8s + "/client-go/kubernetes", k8s + "/client-go/informers"},
		},
		{
			path: "cni/internal/peering", own: with("cni/internal/bgp", "cni/internal/fabric", "cni/internal/overlay"), ban: []string{osExec, http},
		},
		{path: "cni/cmd/berth-netd", own: with("cni/internal/agent", "cni/internal/peering", "cni/internal/fabric", "cni/internal/netdconf", "cni/internal/kube"), ban: []string{osExec, http}},
		{path: "cni/test/netlab", foreign: []string{sys}, ban: []string{http}}, // what tests start
		// BGP: the library that parses what peers send is linked into the unprivileged child alone
		{path: "cni/internal/bgp", ban: []string{osPkg, osExec, http}},
		{path: "cni/internal/bgp/channel", own: []string{"cni/internal/bgp"}, ban: []string{osPkg, osExec, http}},
		{path: "cni/internal/bgp/speaker", own: []string{"cni/internal/bgp"}, foreign: []string{sys}, ban: []string{http}}, // berth-bgp
		{path: "cni/internal/bgpd", own: []string{"cni/internal/bgp"}, foreign: []string{sys, gobgp, "google.golang.org/protobuf"}, ban: []string{osExec, http, grpc}},
		{path: "cni/cmd/berth-bgp", own: []string{"cni/internal/bgpd"}, ban: []string{osExec, http}},
	}
}
