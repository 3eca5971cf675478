package mutants

// volumes are of berth-csi and berth-gpu.
func volumes() []Mutant {
	return []Mutant{
		{
			Name: "journal: fdatasync removed", File: "csi/internal/journal/journal.go", Old: "errors.Join(beforeSync.Hit(), unix.Fdatasync(int(f.Fd())), afterSync.Hit())", New: "errors.Join(beforeSync.Hit(), f.Chmod(0o600), afterSync.Hit())",
			Package: "csi/test", Test: "TestPowerLoss", Why: "a volume that was acknowledged is unknown after a power cut",
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
			Name: "GPU ledger: a claim gets what a container has", File: "deviceplugin/internal/ledger/ledger.go", Old: "		if _, out := l.given[u]; out {", New: "		if _, out := l.given[u]; out && false {",
			Package: "deviceplugin/internal/ledger", Test: "TestBothSides", Why: "two pods compute on one exclusive GPU",
		},
		{
			Name: "GPU ledger: believes before it has written", File: "deviceplugin/internal/ledger/ledger.go", Old: "	if err := atomicfile.WriteSealed(l.file, b, 0o600); err != nil {", New: "	if err := error(nil); err != nil || b == nil {",
			Package: "deviceplugin/internal/ledger", Test: "TestBothSides", Why: "a restart has forgotten every claim",
		},
	}
}
