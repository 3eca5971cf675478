package mutants

// records are of the daemon's stories and their state.
func records() []Mutant {
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
			Name: "pod: images of volumes are not held after a restart", File: "cri/internal/pod/recover.go",
			Old: "			if id != \"\" {\n", New: "			if id != \"\" && false {\n", Package: "cri/internal/pod", Test: "TestImageVolumeIsHeld",
			Why: "the layers of a removed image are deleted under a running container",
		},
	}
}

// groups are of limits and devices.
func groups() []Mutant {
	return []Mutant{
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
			Name: "cgroup: half of a refused change stays", File: "cri/internal/cgroup/change.go",
			Old: "		err = errors.Join(err, c.undo())\n", New: "		_ = c.undo\n", Package: "cri/internal/cgroup", Test: "TestChangeIsAllOrNothing",
			Why: "the kernel has limits that no record and no status shows",
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
