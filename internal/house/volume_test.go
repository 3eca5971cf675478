package house

// volumeRules are those of the driver for local volumes.
func volumeRules(leaves []string) []rule {
	return []rule{
		{path: "csi/cmd", own: append(leaves, "proto", "csi/internal"), foreignIsFree: true, ban: []string{osExec}},
		{path: "csi/internal/config", own: []string{"internal/stricttoml"}, foreignIsFree: true, ban: []string{osExec, http}},
		{
			path: "csi/internal/driver", own: append(leaves, "csi/internal/volume", "csi/internal/config"), foreignIsFree: true,
			ban: []string{osPkg, osExec, http, sys},
		},
		{path: "csi/test", own: append(leaves, "csi/internal"), foreignIsFree: true},
		{path: "csi/internal/cluster", own: leaves, foreignIsFree: true, ban: []string{osPkg, osExec, grpc, sys}},
		{path: "csi/internal/registration", own: []string{"proto/rpc"}, foreignIsFree: true, ban: []string{osExec, http}},
		{path: "csi/internal/volume", own: append(leaves, "csi/internal/mount"), foreign: []string{sys}, ban: []string{http, osExec}},
		{path: "csi/internal/journal", own: leaves, foreign: []string{sys}, ban: []string{http, osExec}},
		{path: "csi/internal/mount", own: leaves, foreign: []string{sys}, ban: []string{http, osExec}},
		{path: "csi/internal/loopdev", own: leaves, foreign: []string{sys}, ban: []string{http, osExec}},
		{path: "csi/internal/mkfs", own: leaves, ban: []string{http}},
		{path: "csi/internal/pool", own: leaves, foreign: []string{sys}, ban: []string{http, osExec}},
		{
			path: "csi/internal/loop", own: append(leaves, "csi/internal/volume", "csi/internal/pool", "csi/internal/mount", "csi/internal/loopdev", "csi/internal/mkfs", "csi/internal/blockfs"),
			foreign: []string{sys}, ban: []string{http, osExec},
		},
		{
			path: "csi/internal/btrfs", own: append(leaves, "csi/internal/volume", "csi/internal/pool", "csi/internal/mount"),
			foreign: []string{sys}, ban: []string{http, osExec},
		},
		{
			path: "csi/internal/dir", own: append(leaves, "csi/internal/volume", "csi/internal/pool", "csi/internal/mount", "csi/internal/tree"),
			foreign: []string{sys}, ban: []string{http, osExec},
		},
		{path: "csi/internal/blockdev", own: leaves, foreign: []string{sys}, ban: []string{http, osExec}},
		{path: "csi/internal/devmapper", foreign: []string{sys}, ban: []string{http, osExec}},
		{path: "csi/internal/volgroup", own: append(leaves, "csi/internal/devmapper"), ban: []string{http}},
		{
			path: "csi/internal/blockfs", own: append(leaves, "csi/internal/volume", "csi/internal/mount", "csi/internal/mkfs"),
			foreign: []string{sys}, ban: []string{http, osExec},
		},
		{
			path: "csi/internal/lvm", own: append(leaves, "csi/internal/volume", "csi/internal/mount", "csi/internal/mkfs", "csi/internal/loopdev", "csi/internal/blockdev",
				"csi/internal/blockfs", "csi/internal/devmapper", "csi/internal/volgroup"),
			foreign: []string{sys}, ban: []string{http, osExec},
		},
		{
			path: "csi/internal/static", own: append(leaves, "csi/internal/volume", "csi/internal/pool", "csi/internal/mount", "csi/internal/mkfs", "csi/internal/loopdev",
				"csi/internal/blockdev", "csi/internal/blockfs"),
			foreign: []string{sys}, ban: []string{http, osExec},
		},
		{path: "csi/internal/gone", own: leaves, foreignIsFree: true, ban: []string{osPkg, osExec, grpc, sys, http}},
		{path: "csi/internal/tree", own: leaves, foreign: []string{sys}, ban: []string{http, osExec}},
		{path: "csi/internal/adopt", own: append(leaves, "csi/internal/tree"), foreignIsFree: true, ban: []string{osExec, http}},
	}
}
