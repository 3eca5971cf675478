package mutants

// runtime are mutants of the daemon besides images.
func runtime() []Mutant {
	return []Mutant{
		{
			Name: "records: fsync removed", File: "cri/internal/store/store.go",
			Old: "err = errors.Join(f.Sync(), f.Close())", New: "err = errors.Join(f.Close())", Package: "cri/internal/store", Test: "TestPowerCut",
			Why: "a power cut takes records that are minutes old",
		},
		{
			Name: "records: a deletion is not synced", File: "cri/internal/store/store.go",
			Old: "	s.mark(filepath.Dir(p))\n	return nil\n}", New: "	return nil\n}", Package: "cri/internal/store", Test: "TestPowerCut",
			Why: "a removed pod is back after a power cut",
		},
		{
			Name: "records: no lock", File: "cri/internal/store/store.go",
			Old: `lockfile.Take(filepath.Join(dir, "lock"))`, New: "lockfile.Take(filepath.Join(dir, time.Now().String()))", Package: "cri/internal/store", Test: "TestSecondOpenIsRefused",
			Why: "two daemons on one state",
		},
		{
			Name: "records: a damaged one stays in place", File: "cri/internal/store/store.go",
			Old: "			s.Quarantine(kind, e.Name(), err)\n", New: "", Package: "cri/internal/store", Test: "TestRecordsSurviveAndDamageIsAlone",
			Why: "nobody hears of the damage, and the evidence is overwritten",
		},
		{
			Name: "records: one that is damaged stops the daemon", File: "cri/internal/store/store.go",
			Old: "			s.Quarantine(kind, e.Name(), err)\n			continue", New: "			return nil, err", Package: "cri/internal/store", Test: "TestRecordsSurviveAndDamageIsAlone",
			Why: "one bad block and the node has no runtime",
		},
		{
			Name: "pod: no rollback of a failed start", File: "cri/internal/pod/run.go",
			Old: "			err = m.undoRun(ctx, p, err)\n", New: "			_ = m.undoRun\n", Package: "cri/internal/pod", Test: "TestFailedRun",
			Why: "each failed RunPodSandbox leaves namespaces, a network attachment and a record",
		},
		{
			Name: "pod: a name may be used twice", File: "cri/internal/pod/run.go",
			Old: "		if old := m.named(k); old != nil {", New: "		if old := m.named(k); old != nil && false {", Package: "cri/internal/pod", Test: "TestLife",
			Why: "a retry of a lost answer makes a second pod",
		},
		{
			Name: "cgroup: kill does nothing", File: "cri/internal/cgroup/cgroup.go",
			Old: `err := write(l.Unified+path+"/cgroup.kill", "1")`, New: `err := write(l.Unified+path+"/cgroup.kill", "")`, Package: "cri/internal/cgroup", Test: "TestStartInsideAndKill",
			Why: "a container that does not want to end does not",
		},
		{
			Name: "cgroup: paths may leave the hierarchy", File: "cri/internal/cgroup/cgroup.go",
			Old: `if part == ".." {`, New: `if part == "..." {`, Package: "cri/internal/cgroup", Test: "TestRefusals",
			Why: "a pod's cgroup parent names any directory of the host",
		},
		{
			Name: "cgroup: devices not denied first (v1)", File: "cri/internal/cgroup/devices.go",
			Old: `if err := put(deny, "a"); err != nil {`, New: `if err := error(nil); err != nil {`, Package: "cri/internal/cgroup", Test: "TestDevicesAreDeniedByDefault",
			Why: "every device of the node opens in every container",
		},
		{
			Name: "cgroup: device program allows by default (v2)", File: "cri/internal/cgroup/devices.go",
			Old: "	return append(prog, insn{op: opMovImm, reg: 0, imm: 0}, insn{op: opExit})", New: "	return append(prog, insn{op: opMovImm, reg: 0, imm: 1}, insn{op: opExit})", Package: "cri/internal/cgroup", Test: "TestDevicesAreDeniedByDefault",
			Why: "the same on cgroup v2",
		},
		{
			Name: "CDI: a directory that others may write is trusted", File: "cri/internal/cdi/registry.go",
			Old: "if !ok || st.Uid != 0 || x.Mode().Perm()&0o022 != 0 {", New: "if !ok || st.Uid != 0 {", Package: "cri/internal/cdi", Test: "TestHostile",
			Why: "whoever can write there gives a container any device and any mount",
		},
	}
}

// images are mutants of the image store, the unpacker and the registry's client.
func images() []Mutant {
	return []Mutant{
		{
			Name: "layers: content not synced before it is committed", File: "cri/internal/layers/store.go",
			Old: "if err := s.sync.Sync(); err != nil {", New: "if err := error(nil); err != nil {", Package: "cri/internal/image", Test: "TestPowerCut",
			Why: "after a power cut an image is there and its files are empty",
		},
		{
			Name: "image record: not synced", File: "cri/internal/image/record.go",
			Old: "errors.Join(werr, f.Sync(), f.Close())", New: "errors.Join(werr, f.Close())", Package: "cri/internal/image", Test: "TestPowerCut",
			Why: "an acknowledged image has an empty record after a power cut",
		},
		{
			Name: "image record: its name not synced", File: "cri/internal/image/record.go",
			Old: "	return syncDir(filepath.Dir(path))", New: "	return nil", Package: "cri/internal/image", Test: "TestPowerCut",
			Why: "an acknowledged image has no record after a power cut",
		},
		{
			Name: "image: removed before the containers are known", File: "cri/internal/image/remove.go",
			Old: "keep := s.held(id) || !s.retained", New: "keep := s.held(id)", Package: "cri/internal/image", Test: "TestBeforeRetain",
			Why: "a removal right after a restart takes a running container's files",
		},
		{
			Name: "image: removed under its containers", File: "cri/internal/image/use.go",
			Old: "!s.retained || s.held(id) {", New: "!s.retained {", Package: "cri/internal/image", Test: "TestTwoHolders",
			Why: "a running container's files disappear",
		},
		{
			Name: "image: deleted before the containers are known", File: "cri/internal/image/use.go",
			Old: "!e.rec.Removed || !s.retained || s", New: "!e.rec.Removed || s", Package: "cri/internal/image", Test: "TestBeforeRetain",
			Why: "a daemon that restarts deletes what its containers run from",
		},
		{
			Name: "layers: reference not counted", File: "cri/internal/layers/store.go",
			Old: "if l.refs--; l.refs > 0 {", New: "if l.refs--; l.refs > 99 {", Package: "cri/internal/image", Test: "TestSharedLayer",
			Why: "removing one image takes the layers it shares from another",
		},
		{
			Name: "layer: what it unpacks to is not compared", File: "cri/internal/layers/unpack.go",
			Old: "got != diffID {", New: "got != diffID && false {", Package: "cri/internal/layers", Test: "TestUnpackRefuses",
			Why: "a layer is used that the image's config does not name",
		},
		{
			Name: "layer: blob's digest not compared", File: "cri/internal/unpacker/confined.go",
			Old: "got != b.Digest {", New: "got != b.Digest && false {", Package: "cri/internal/unpacker", Test: "TestContent",
			Why: "a registry delivers what it likes",
		},
		{
			Name: "layer: unpacked size not limited", File: "cri/internal/layers/entry.go",
			Old: "if hdr.Size > a.limits.Bytes-a.written {", New: "if hdr.Size > a.limits.Bytes-a.written && false {", Package: "cri/internal/layers", Test: "TestLimits",
			Why: "42 kilobytes fill the disk",
		},
		{
			Name: "layer: writes follow links", File: "cri/internal/layers/entry.go",
			Old: "	const flags = unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC", New: "	const flags = unix.O_WRONLY | unix.O_CREAT | unix.O_CLOEXEC", Package: "cri/internal/layers", Test: "TestHostileArchives",
			Why: "a link and a file of the same name in a layer overwrite a file of the host",
		},
		{
			Name: "layer: directories are walked with links", File: "cri/internal/layers/resolve.go",
			Old: "Resolve: beneath}", New: "Resolve: beneath &^ unix.RESOLVE_NO_SYMLINKS}", Package: "cri/internal/layers", Test: "TestHostileArchives",
			Why: "entries land behind links, where overlayfs does not expect them",
		},
		{
			Name: "unpacker: not killed with its parent", File: "cri/internal/unpacker/nest.go",
			Old: "Cloneflags: syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}", New: "Cloneflags: syscall.CLONE_NEWPID}", Package: "cri/internal/unpacker", Test: "TestKilledWithItsParent",
			Why: "unpackers of a killed daemon go on writing into the store of the next",
		},
		{
			Name: "unpacker: has the host's network", File: "cri/internal/unpacker/root.go",
			Old: "unix.CLONE_NEWNS | unix.CLONE_NEWNET |", New: "unix.CLONE_NEWNS |", Package: "cri/internal/unpacker", Test: "TestConfinement",
			Why: "a broken decompressor reaches the cloud's metadata service",
		},
		{
			Name: "unpacker: keeps root's capabilities", File: "cri/internal/unpacker/root.go",
			Old: "has == 0 || keep[c] {", New: "has == 0 || keep[c] || true {", Package: "cri/internal/unpacker", Test: "TestConfinement",
			Why: "a broken decompressor mounts and loads modules",
		},
		{
			Name: "unpacker: the old root stays", File: "cri/internal/unpacker/root.go",
			Old: `	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {`, New: `	if err := error(nil); err != nil {`, Package: "cri/internal/unpacker", Test: "TestConfinement",
			Why: "the host's files are one pivot away",
		},
		{
			Name: "unpacker: one that makes no progress is waited for", File: "cri/internal/unpacker/child.go",
			Old: "case now.Sub(last) > cfg.Stall:", New: "case now.Sub(last) > 1000*cfg.Stall:", Package: "cri/internal/unpacker", Test: "TestStranger/hang",
			Why: "a layer that hangs the unpacker holds its pull for ever",
		},
		{
			Name: "registry: a manifest's digest not compared", File: "cri/internal/registry/resolve.go",
			Old: `if want != "" && got != want {`, New: `if want != "" && got != want && false {`, Package: "cri/internal/image", Test: "TestRogueRegistries",
			Why: "an image pulled by digest is another one",
		},
		{
			Name: "registry: manifests of any size", File: "cri/internal/registry/resolve.go",
			Old: "limit+1))\n", New: "limit<<20))\n", Package: "cri/internal/image", Test: "TestRogueRegistries",
			Why: "a registry fills the daemon's memory",
		},
		{
			Name: "registry: a credential goes to whoever asks", File: "cri/internal/registry/auth.go",
			Old: "		return h.upstream\n", New: "		return true\n", Package: "cri/internal/registry", Test: "TestCredentialsStayHome",
			Why: "a mirror gets the registry's password",
		},
		{
			Name: "registry: a credential for another server is used", File: "cri/internal/registry/auth.go",
			Old: "	return want == canonicalHost(h.addr) || h.upstream && want == canonicalHost(domain)", New: "	return want != \"\" || domain == \"\"", Package: "cri/internal/registry", Test: "TestCredentialsStayHome",
			Why: "any registry that an image's name points to gets it",
		},
		{
			Name: "registry: silence is waited for", File: "cri/internal/registry/watch.go",
			Old: "time.AfterFunc(w.stall, w.abort)", New: "time.AfterFunc(1000*w.stall, w.abort)", Package: "cri/internal/registry", Test: "TestBlobMisbehaviour/stalls",
			Why: "a pull hangs for as long as a dead peer keeps the connection",
		},
		{
			Name: "registry: a trickle is waited for", File: "cri/internal/registry/watch.go",
			Old: "rate < float64(w.minRate) {", New: "rate < 0*float64(w.minRate) {", Package: "cri/internal/registry", Test: "TestBlobMisbehaviour/trickles",
			Why: "a byte a second holds a pull for ever",
		},
	}
}
