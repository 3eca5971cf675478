package house

import "slices"

// storageRules are those of the CSI driver, from the leaves up: mechanisms know nothing of volumes, backends nothing of
// each other, and only the edges see Kubernetes.
func storageRules(leaves []string) []rule {
	with := func(more ...string) []string {
		own := slices.Clone(leaves)
		for _, m := range more {
			own = append(own, "csi/internal/"+m)
		}
		return own
	}
	below := func(path string, more ...string) rule {
		return rule{path: "csi/internal/" + path, own: with(more...), foreign: []string{sys}, ban: []string{http, osExec}}
	}
	return []rule{
		below("blockdev"), below("devmapper"), below("journal"), below("loopdev"), below("mount"), below("pool"), below("tree"),
		{path: "csi/internal/mkfs", own: leaves, ban: []string{http}},
		{path: "csi/internal/volgroup", own: with("devmapper"), ban: []string{http}},
		below("volume", "mount"),

		below("blockfs", "volume", "mount", "mkfs", "loopdev", "blockdev"),
		below("pooldir", "volume", "mount", "pool"),
		below("btrfs", "volume", "pool", "pooldir"),
		below("dir", "volume", "pool", "pooldir", "tree"),
		below("loop", "volume", "pool", "pooldir", "mount", "loopdev", "mkfs", "blockfs"),
		below("lvm", "volume", "mount", "loopdev", "mkfs", "blockdev", "blockfs", "devmapper", "volgroup"),
		below("static", "volume", "pool", "pooldir", "mount", "loopdev", "mkfs", "blockdev", "blockfs"),

		{path: "csi/internal/config", own: []string{"internal/stricttoml"}, foreignIsFree: true, ban: []string{osExec, http}},
		{path: "csi/internal/registration", own: []string{"proto/rpc"}, foreignIsFree: true, ban: []string{osExec, http}},
		{path: "csi/internal/driver", own: with("volume", "config"), foreignIsFree: true, ban: []string{osPkg, osExec, http, sys}},
		{path: "csi/internal/cluster", own: leaves, foreignIsFree: true, ban: []string{osPkg, osExec, grpc, sys}},
		{path: "csi/internal/gone", own: leaves, foreignIsFree: true, ban: []string{osPkg, osExec, grpc, sys, http}},
		{path: "csi/internal/adopt", own: with("tree"), foreignIsFree: true, ban: []string{osExec, http}},
		{path: "csi/cmd", own: append(with(), "proto", "csi/internal"), foreignIsFree: true, ban: []string{osExec}},
		{path: "csi/test", own: append(with(), "csi/internal"), foreignIsFree: true},
	}
}
