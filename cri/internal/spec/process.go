package spec

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/proto/errs"
)

// defaultPath is what a process finds if neither image nor pod sets PATH, as on peers.
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

func process(in Input, sc *cri.LinuxContainerSecurityContext) (*specs.Process, error) {
	c := in.Container
	p := &specs.Process{
		Terminal: c.GetTty(),
		User: specs.User{
			UID: in.User.UID, GID: in.User.GID, AdditionalGids: in.User.Groups,
		},
		Cwd:             c.GetWorkingDir(),
		NoNewPrivileges: sc.GetNoNewPrivs(),
	}
	if p.Cwd == "" {
		p.Cwd = in.Image.WorkingDir
	}
	if p.Cwd == "" {
		p.Cwd = "/"
	}
	if !strings.HasPrefix(p.Cwd, "/") {
		return nil, errs.InvalidArgument.Errorf("working_dir %q is not absolute", p.Cwd)
	}
	var err error
	if p.Args, err = args(in); err != nil {
		return nil, err
	}
	p.Env = environment(in)
	if adj := c.GetLinux().GetResources().GetOomScoreAdj(); c.GetLinux().GetResources() != nil {
		n := int(adj)
		p.OOMScoreAdj = &n
	}
	p.Capabilities, err = capabilities(sc, in.LastCap)
	return p, err
}

// args is the CRI rule: a command replaces the image's entrypoint and its cmd, args replace the cmd alone.
func args(in Input) ([]string, error) {
	cmd, arg := in.Container.GetCommand(), in.Container.GetArgs()
	if len(cmd) == 0 {
		cmd = in.Image.Entrypoint
		if len(arg) == 0 {
			arg = in.Image.Cmd
		}
	}
	all := slices.Concat(cmd, arg)
	if len(all) == 0 {
		return nil, errs.InvalidArgument.Errorf("container %q has no command: neither the pod nor the image %q gives one",
			in.Container.GetMetadata().GetName(), in.Container.GetImage().GetImage())
	}
	for _, a := range all {
		if strings.Contains(a, "\x00") {
			return nil, errs.InvalidArgument.Errorf("command: argument %q holds a NUL", a)
		}
	}
	return all, nil
}

// environment is the image's, overridden by the pod's; later entries of one name win, in place.
func environment(in Input) []string {
	env := []string{defaultPath}
	if in.Container.GetTty() {
		env = append(env, "TERM=xterm")
	}
	if h := cmp.Or(in.Sandbox.GetHostname(), in.Hostname); h != "" {
		env = append(env, "HOSTNAME="+h)
	}
	at := map[string]int{}
	for i, e := range env {
		k, _, _ := strings.Cut(e, "=")
		at[k] = i
	}
	set := func(k, v string) {
		if i, ok := at[k]; ok {
			env[i] = k + "=" + v
			return
		}
		at[k] = len(env)
		env = append(env, k+"="+v)
	}
	for _, e := range in.Image.Env {
		if k, v, ok := strings.Cut(e, "="); ok && k != "" && !strings.Contains(e, "\x00") {
			set(k, v)
		}
	}
	for _, e := range in.Container.GetEnvs() {
		set(e.GetKey(), string(e.GetValue()))
	}
	return env
}

// capNames are the capabilities by number (linux/capability.h, up to CAP_CHECKPOINT_RESTORE of Linux 5.9).
func capNames() []string {
	return []string{
		"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
		"LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
		"SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
		"SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
		"MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
		"CHECKPOINT_RESTORE",
	}
}

// defaultCaps are what a container gets unasked, on every peer.
func defaultCaps() []string {
	return []string{
		"CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP",
		"NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE",
	}
}

func capabilities(sc *cri.LinuxContainerSecurityContext, last int) (*specs.LinuxCapabilities, error) {
	known := capNames()
	known = known[:min(len(known), last+1)]
	set := map[string]bool{}
	ambient := map[string]bool{}
	if sc.GetPrivileged() {
		for _, c := range known {
			set[c] = true
		}
	} else {
		for _, c := range defaultCaps() {
			set[c] = true
		}
		if err := adjust(set, ambient, sc.GetCapabilities(), known); err != nil {
			return nil, err
		}
	}
	list := func(of map[string]bool) []string {
		var out []string
		for _, c := range known {
			if of[c] {
				out = append(out, "CAP_"+c)
			}
		}
		return out
	}
	all, amb := list(set), list(ambient)
	return &specs.LinuxCapabilities{Bounding: all, Effective: all, Permitted: all, Inheritable: amb, Ambient: amb}, nil
}

// adjust adds and drops. "ALL" is applied before the single ones, on each side, so that drop ALL + add X is X.
func adjust(set, ambient map[string]bool, c *cri.Capability, known []string) error {
	all := func(to map[string]bool, on bool) {
		for _, k := range known {
			to[k] = on
		}
	}
	name := func(s string) string { return strings.TrimPrefix(strings.ToUpper(s), "CAP_") }
	check := func(s string) error {
		if n := name(s); n != "ALL" && !slices.Contains(known, n) {
			return errs.InvalidArgument.Errorf("linux.security_context.capabilities: unknown capability %q", s)
		}
		return nil
	}
	for _, s := range slices.Concat(c.GetAddCapabilities(), c.GetDropCapabilities(), c.GetAddAmbientCapabilities()) {
		if err := check(s); err != nil {
			return err
		}
	}
	has := func(list []string) bool {
		return slices.ContainsFunc(list, func(s string) bool { return name(s) == "ALL" })
	}
	if has(c.GetAddCapabilities()) {
		all(set, true)
	}
	if has(c.GetDropCapabilities()) {
		all(set, false)
	}
	for _, s := range c.GetAddCapabilities() {
		set[name(s)] = true
	}
	for _, s := range c.GetAddAmbientCapabilities() {
		if name(s) == "ALL" {
			all(set, true)
			all(ambient, true)
		}
		set[name(s)], ambient[name(s)] = true, true
	}
	for _, s := range c.GetDropCapabilities() {
		set[name(s)], ambient[name(s)] = false, false
	}
	return nil
}

// synonyms are the signal(7) names that the CRI has and package unix has not.
func synonyms() map[string]unix.Signal {
	return map[string]unix.Signal{"SIGCLD": unix.SIGCHLD, "SIGIOT": unix.SIGABRT, "SIGPOLL": unix.SIGIO, "SIGUNUSED": unix.SIGSYS}
}

// Signal is the number of a stop signal: a name with or without SIG, a number, SIGRTMIN+n. An empty or unknown
// one is SIGTERM with ok false.
func Signal(s string) (sig unix.Signal, ok bool) {
	s = strings.TrimSpace(s)
	if s == "" {
		return unix.SIGTERM, false
	}
	if n, err := strconv.Atoi(s); err == nil && n > 0 && n <= 64 {
		return unix.Signal(n), true
	}
	up := strings.ToUpper(s)
	if !strings.HasPrefix(up, "SIG") {
		up = "SIG" + up
	}
	if n := unix.SignalNum(up); n != 0 {
		return n, true
	}
	if n := synonyms()[up]; n != 0 {
		return n, true
	}
	const rtmin, rtmax = 34, 64 // as libc's: 32 and 33 are its own
	for prefix, base := range map[string]int{"SIGRTMIN": rtmin, "SIGRTMAX": rtmax} {
		rest, found := strings.CutPrefix(up, prefix)
		if !found {
			continue
		}
		off := 0
		if rest != "" {
			var err error
			if off, err = strconv.Atoi(rest); err != nil {
				continue
			}
		}
		if n := base + off; n >= rtmin && n <= rtmax {
			return unix.Signal(n), true
		}
	}
	return unix.SIGTERM, false
}
