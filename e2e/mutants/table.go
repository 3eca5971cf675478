package mutants

import "slices"

// All is the whole table.
func All() []Mutant {
	return slices.Concat(leaves(), borders(), records(), groups(), images(), contents(), unpackers(), registries(), identity(), surroundings(),
		outputs(), addresses(), attachments(), routes(), volumes(), devices())
}

// leaves are of the packages that several programs share.
func leaves() []Mutant {
	return []Mutant{
		{
			Name: "sealed file: checksum not compared", File: "internal/atomicfile/atomicfile.go",
			Old: "got != sum {", New: "got != sum && false {", Package: "internal/atomicfile", Test: "TestEveryByteMatters",
			Why: "a flipped bit in a record is believed",
		},
		{
			Name: "sealed file: no rename, the file itself is written", File: "internal/atomicfile/atomicfile.go",
			Old: "	return os.Rename(f.Name(), path)", New: "	return errors.Join(os.WriteFile(path, data, perm), os.Remove(f.Name()))", Package: "internal/atomicfile", Test: "TestReadersSeeOldOrNew",
			Why: "whoever reads at the wrong moment, or after a kill, has half a record",
		},
		{
			Name: "atomic write: temporary file left after a failure", File: "internal/atomicfile/atomicfile.go",
			Old: "err = errors.Join(err, os.Remove(f.Name()))", New: "err = errors.Join(err)", Package: "internal/atomicfile", Test: "TestFailedWriteLeavesNothing",
			Why: "each failed write leaves a file, on a full disk of all places",
		},
		{
			Name: "quarantine: overwrites older evidence", File: "internal/atomicfile/atomicfile.go",
			Old: "if _, err := os.Lstat(to); err == nil {", New: "if _, err := os.Lstat(to); err == nil && false {", Package: "internal/atomicfile", Test: "TestQuarantineKeepsAll",
			Why: "the second damaged file destroys the first",
		},
		{
			Name: "lock file: taken twice by one process", File: "internal/lockfile/lockfile.go",
			Old: "if own.paths[path] {", New: "if false {", Package: "internal/lockfile", Test: "TestTake",
			Why: "two stores in one process write the same records",
		},
		{
			Name: "lock file: a held lock is taken", File: "internal/lockfile/lockfile.go",
			Old: "unix.FcntlFlock(f.Fd(), unix.F_SETLK, &whole); err == nil {", New: "unix.FcntlFlock(f.Fd(), unix.F_SETLK, &whole); err == nil || true {", Package: "internal/lockfile", Test: "TestTake",
			Why: "a second daemon runs on the same state",
		},
		{
			Name: "in-root open: RESOLVE_IN_ROOT dropped", File: "internal/inroot/inroot.go",
			Old: "unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_MAGICLINKS)", New: "unix.RESOLVE_NO_MAGICLINKS)", Package: "internal/inroot", Test: "TestLinksEndInside",
			Why: "a link in an image leads to the host's files",
		},
		{
			Name: "in-root open: O_CLOEXEC dropped", File: "internal/inroot/inroot.go",
			Old: "Flags: uint64(flags | unix.O_CLOEXEC)", New: "Flags: uint64(flags)", Package: "internal/inroot", Test: "TestClosedOnExec",
			Why: "a CNI plugin inherits a container's files",
		},
		{
			Name: "in-root read: size not limited", File: "internal/inroot/inroot.go",
			Old: "if fi.Size() > limit {", New: "if fi.Size() > limit && false {", Package: "internal/inroot", Test: "TestReadFileBounds",
			Why: "an image's /etc/passwd of 10 GiB is read into the daemon",
		},
		{
			Name: "in-root read: anything but a file is read too", File: "internal/inroot/inroot.go",
			Old: "if !fi.Mode().IsRegular() {", New: "if false {", Package: "internal/inroot", Test: "TestReadFileBounds",
			Why: "a fifo or a device in an image is read as a file",
		},
	}
}

// borders are of who may speak to a program.
func borders() []Mutant {
	return []Mutant{
		{
			Name: "shim socket: peer's uid not checked", File: "proto/shim/v1/conn.go",
			Old: "if cred.Uid != 0 {", New: "if cred.Uid != 0 && false {", Package: "proto/shim/v1", Test: "TestOnlyRootMaySpeak",
			Why: "whoever reaches the socket starts processes as root",
		},
		{
			Name: "failpoints: anybody's file is read", File: "internal/failpoint/failpoint.go",
			Old: "fi.Mode().Perm()&0o077 != 0 ||", New: "false ||", Package: "internal/failpoint", Test: "TestFileMustBeRootOnly",
			Why: "a file in a directory that others may write kills the daemon",
		},
	}
}
