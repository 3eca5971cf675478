package mutants

// images are of what the image store keeps, and for whom.
func images() []Mutant {
	return []Mutant{
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
	}
}

// contents are of what layers may be.
func contents() []Mutant {
	return []Mutant{
		{
			Name: "layers: content not synced before it is committed", File: "cri/internal/layers/store.go",
			Old: "if err := s.sync.Sync(); err != nil {", New: "if err := error(nil); err != nil {", Package: "cri/internal/image", Test: "TestPowerCut",
			Why: "after a power cut an image is there and its files are empty",
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
	}
}

// unpackers are of the confined children that read what strangers made.
func unpackers() []Mutant {
	return []Mutant{
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
	}
}

// registries are of the registry's client.
func registries() []Mutant {
	return []Mutant{
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
			Old: "w.timer.Reset(w.stall)", New: "w.timer.Reset(100 * w.stall)", Package: "cri/internal/registry", Test: "TestBlobMisbehaviour/stalls",
			Why: "a pull hangs for as long as a dead peer keeps the connection",
		},
		{
			Name: "registry: a trickle is waited for", File: "cri/internal/registry/watch.go",
			Old: "rate < float64(w.minRate) {", New: "rate < 0*float64(w.minRate) {", Package: "cri/internal/registry", Test: "TestBlobMisbehaviour/trickles",
			Why: "a byte a second holds a pull for ever",
		},
	}
}
