package mutants

// identity are of who a container's process is.
func identity() []Mutant {
	const process = "shim/internal/executor/compile_process.go"
	return []Mutant{
		{
			Name: "no_new_privs not set", File: process, Old: "	if p.NoNewPrivileges {\n", New: "	if p.NoNewPrivileges && false {\n",
			Package: "shim/test", Test: "TestHygiene", Why: "a setuid program in the image gives root in the container",
		},
		{
			Name: "seccomp filter not loaded (with no_new_privs)", File: process, Old: "filter != nil && p.NoNewPrivileges {", New: "filter != nil && p.NoNewPrivileges && false {",
			Package: "shim/test", Test: "TestSeccompDenies", Why: "RuntimeDefault is a word",
		},
		{
			Name: "seccomp filter not loaded (without no_new_privs)", File: process, Old: "filter != nil && !p.NoNewPrivileges {", New: "filter != nil && !p.NoNewPrivileges && false {",
			Package: "shim/test", Test: "TestSeccompDenies", Why: "the same, for containers that may gain privileges",
		},
		{
			Name: "seccomp loaded after the capabilities are gone", File: process, Old: "	if filter != nil && !p.NoNewPrivileges {\n		c.seccomp(filter)\n	}\n	have := c.host.have", New: "	if filter != nil && !p.NoNewPrivileges {\n		defer c.seccomp(filter)\n	}\n	have := c.host.have",
			Package: "shim/test", Test: "TestSeccompDenies", Why: "the kernel refuses the filter and no container starts, or it comes after execve",
		},
		{
			Name: "bounding set not reduced", File: process, Old: "if caps.bounding&(1<<n) == 0 {", New: "if caps.bounding&(1<<n) == 0 && false {",
			Package: "shim/test", Test: "TestIdentity", Why: "a file with capabilities in the image gives what the pod was refused",
		},
		{
			Name: "capabilities not set", File: process, Old: "	c.setCaps(caps)\n	c.Add", New: "	c.Add",
			Package: "shim/test", Test: "TestIdentity", Why: "the process keeps the shim's capabilities",
		},
		{
			Name: "groups not set", File: process, Old: "		plan.Call(\"set the groups\", unix.SYS_SETGROUPS, plan.I(len(u.AdditionalGids)), plan.B(groups)),\n", New: "",
			Package: "shim/test", Test: "TestIdentity", Why: "the process is in the shim's groups, and not in its own",
		},
		{
			Name: "signals stay blocked", File: "shim/internal/executor/compile.go", Old: "c.Add(plan.UnblockSignals(),\n", New: "c.Add(\n",
			Package: "shim/test", Test: "TestHygiene", Why: "SIGTERM never reaches the workload",
		},
		{
			Name: "the shim's program can be written", File: "shim/internal/app/app.go", Old: "errors.Join(shelter(), becomeSupervisor())", New: "errors.Join(becomeSupervisor())",
			Package: "shim/test", Test: "TestOwnProgramIsSheltered", Why: "a container overwrites what runs as root on the node",
		},
	}
}

// surroundings are of what it can reach.
func surroundings() []Mutant {
	const mounts = "shim/internal/executor/compile_mounts.go"
	return []Mutant{
		{
			Name: "masked paths visible", File: "shim/internal/executor/compile.go", Old: "	c.masked()\n", New: "",
			Package: "shim/test", Test: "TestClosedPaths", Why: "/proc/kcore and /proc/keys are there",
		},
		{
			Name: "read-only paths writable", File: "shim/internal/executor/compile.go", Old: "	c.readonly()\n", New: "",
			Package: "shim/test", Test: "TestClosedPaths", Why: "/proc/sys is the host's, writable",
		},
		{
			Name: "the old root stays mounted", File: mounts, Old: "		plan.Call(\"detach the old root\", unix.SYS_UMOUNT2, plan.S(\".\"), plan.I(unix.MNT_DETACH)),\n", New: "",
			Package: "shim/test", Test: "TestClosedPaths", Why: "the host's root is under the container's",
		},
		{
			Name: "/proc and /sys may be links of the image", File: "shim/internal/executor/compile.go", Old: "inside | unix.RESOLVE_NO_SYMLINKS", New: "inside",
			Package: "shim/test", Test: "TestHostileRootfs", Why: "masking happens somewhere else than where proc is",
		},
		{
			Name: "mounts inside /proc", File: mounts, Old: `if !strings.HasPrefix(dest, "/proc/") {`, New: `if dest != "" {`,
			Package: "shim/test", Test: "TestHostileRootfs", Why: "a volume stands in for /proc/self/attr, and labels go nowhere",
		},
		{
			Name: "a mount on the root itself", File: mounts, Old: "	if dest == \"/\" {\n		return errs", New: "	if dest == \"//\" {\n		return errs",
			Package: "shim/test", Test: "TestHostileRootfs", Why: "a volume hides everything that was mounted before",
		},
		{
			Name: "sysctls of the host", File: "shim/internal/executor/sysctl.go", Old: "	return \"\", \"\", errs.InvalidArgument.Errorf(\"sysctl %q is not namespaced\", key)", New: "	return file, \"net\", nil",
			Package: "shim/internal/executor", Test: "TestSysctlPath", Why: "kernel.core_pattern of the node is a pod's to set",
		},
	}
}

// outputs are of its output, and of the filter's compiler.
func outputs() []Mutant {
	return []Mutant{
		{
			Name: "log: follows links", File: "shim/internal/crilog/crilog.go", Old: "root.Beneath(l.name,", New: "root.Open(l.name,",
			Package: "shim/internal/crilog", Test: "TestHostileNames", Why: "a link in the log directory is written through",
		},
		{
			Name: "log: a device is written to", File: "shim/internal/crilog/crilog.go", Old: "if err == nil && !fi.Mode().IsRegular() {", New: "if err == nil && !fi.Mode().IsRegular() && false {",
			Package: "shim/internal/crilog", Test: "TestHostileNames", Why: "a log file that is a device, or a fifo that blocks",
		},
		{
			Name: "log: half a record before the next", File: "shim/internal/crilog/crilog.go", Old: "	l.torn = whole < n\n", New: "",
			Package: "shim/internal/crilog", Test: "TestFullDisk", Why: "after a full disk the kubelet cannot parse the log",
		},
		{
			Name: "seccomp: x32 calls pass", File: "shim/internal/seccomp/seccomp.go", Old: "a.jump(unix.BPF_JGE, x32Bit, foreign, root)", New: "a.jump(unix.BPF_JGE, 0xffffffff, foreign, root)",
			Package: "shim/internal/seccomp", Test: "TestX32", Why: "every denied call has a second number",
		},
	}
}
