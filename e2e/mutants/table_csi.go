package mutants

// volumes are of berth-csi.
func volumes() []Mutant {
	return []Mutant{
		{
			Name: "journal: fdatasync removed", File: "csi/internal/journal/journal.go", Old: "errors.Join(beforeSync.Hit(), unix.Fdatasync(int(f.Fd())), afterSync.Hit())", New: "errors.Join(beforeSync.Hit(), f.Chmod(0o600), afterSync.Hit())",
			Package: "csi/test", Test: "TestPowerLoss/loop-ext4", Why: "a volume that was acknowledged is unknown after a power cut",
		},
		{
			Name: "journal: no lock", File: "csi/internal/journal/journal.go", Old: "unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {", New: "error(nil); err != nil {",
			Package: "csi/internal/journal", Test: "TestSecondProcessIsRefused", Why: "two drivers write one journal",
		},
		{
			Name: "journal: checksum not compared", File: "csi/internal/journal/journal.go", Old: "if err != nil || uint32(want) != crc32.Checksum(text, castagnoli) {", New: "if err != nil || want == 1 {",
			Package: "csi/internal/journal", Test: "TestEveryByte", Why: "a flipped bit is a volume's size",
		},
		{
			Name: "journal: never rewritten", File: "csi/internal/journal/journal.go", Old: "	if j.size < rewriteMin || j.size < 4*j.bytes {", New: "	if j.size > 0 {",
			Package: "csi/internal/journal", Test: "TestShrinks", Why: "it fills the disk",
		},
		{
			Name: "volume: device nodes work", File: "csi/internal/mount/flags.go", Old: "const Safe = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV", New: "const Safe = unix.MOUNT_ATTR_NOSUID",
			Package: "csi/test", Test: "TestNoDevicesNoSetuid", Why: "a tenant's mknod on his volume is the node's disk",
		},
		{
			Name: "volume: setuid programs work", File: "csi/internal/mount/flags.go", Old: "const Safe = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV", New: "const Safe = unix.MOUNT_ATTR_NODEV",
			Package: "csi/test", Test: "TestNoDevicesNoSetuid", Why: "a tenant's program is root's on the node",
		},
		{
			Name: "volume: more is promised than there is", File: "csi/internal/volume/ledger.go", Old: "	if n > l.free() {", New: "	if n > l.free() && false {",
			Package: "csi/test", Test: "TestParallel", Why: "a pool is full before its volumes are",
		},
	}
}

// devices are of berth-gpu.
func devices() []Mutant {
	const answer, ledger = "deviceplugin/internal/server/answer.go", "deviceplugin/internal/ledger/ledger.go"
	return []Mutant{
		{
			Name: "GPU: an unhealthy one is given", File: answer, Old: "		case !r.Devices[i].Healthy():", New: "		case !r.Devices[i].Healthy() && false:",
			Package: "deviceplugin/internal/server", Test: "TestPickRefuses", Why: "a pod computes on a GPU that loses memory",
		},
		{
			Name: "GPU: one that is named twice counts twice", File: answer, Old: "		case seen[id]:", New: "		case seen[id] && false:",
			Package: "deviceplugin/internal/server", Test: "TestPickRefuses", Why: "a pod that asked for two has one",
		},
		{
			Name: "GPU ledger: a claim gets what a container has", File: "deviceplugin/internal/ledger/ledger.go", Old: "		if _, out := l.given[u]; out {", New: "		if _, out := l.given[u]; out && false {",
			Package: "deviceplugin/internal/ledger", Test: "TestBothSides", Why: "two pods compute on one exclusive GPU",
		},
		{
			Name: "GPU ledger: believes before it has written", File: "deviceplugin/internal/ledger/ledger.go", Old: "	if err := atomicfile.WriteSealed(l.file, b, 0o600); err != nil {", New: "	if err := error(nil); err != nil || b == nil {",
			Package: "deviceplugin/internal/ledger", Test: "TestBothSides", Why: "a restart has forgotten every claim",
		},
		{
			Name: "GPU ledger: what the kubelet does not show is free at once", File: ledger, Old: "now.Sub(g.last) > absent", New: "now.Sub(g.last) > 0",
			Package: "deviceplugin/internal/ledger", Test: "TestBothSides", Why: "a kubelet that has just started frees every GPU in use",
		},
		{
			Name: "GPU: a label names an override that is none", File: "deviceplugin/internal/config/validate.go", Old: "		if !ok {\n			return policy.Policy{}", New: "		if !ok && false {\n			return policy.Policy{}",
			Package: "deviceplugin/internal/config", Test: "TestOffer", Why: "a mistyped label takes every rule away",
		},
		{
			Name: "GPU: labels of others are taken away", File: "deviceplugin/internal/kubenode/labels.go", Old: "for k := range strings.SplitSeq(have.Annotations[Owned], \",\") {", New: "for k := range have.Labels {",
			Package: "deviceplugin/internal/kubenode", Test: "TestCompile", Why: "a node loses its zone, and its pods their place",
		},
	}
}
