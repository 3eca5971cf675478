package privilege

import (
	"os"
	"path/filepath"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// row is one security context.
type row struct {
	name  string
	image string // busybox if empty
	pod   func(*cri.PodSandboxConfig)
	sc    func(*cri.LinuxContainerSecurityContext)
}

func uid(n int64) *cri.Int64Value { return &cri.Int64Value{Value: n} }

func caps(add, drop, ambient []string) func(*cri.LinuxContainerSecurityContext) {
	return func(sc *cri.LinuxContainerSecurityContext) {
		sc.Capabilities = &cri.Capability{AddCapabilities: add, DropCapabilities: drop, AddAmbientCapabilities: ambient}
	}
}

// as runs as a user with groups.
func as(user int64, group *cri.Int64Value, more ...int64) func(*cri.LinuxContainerSecurityContext) {
	return func(sc *cri.LinuxContainerSecurityContext) {
		sc.RunAsUser, sc.RunAsGroup, sc.SupplementalGroups = uid(user), group, more
	}
}

func all(changes ...func(*cri.LinuxContainerSecurityContext)) func(*cri.LinuxContainerSecurityContext) {
	return func(sc *cri.LinuxContainerSecurityContext) {
		for _, c := range changes {
			c(sc)
		}
	}
}

func strict(sc *cri.LinuxContainerSecurityContext) {
	sc.SupplementalGroupsPolicy = cri.SupplementalGroupsPolicy_Strict
}

func noNewPrivs(sc *cri.LinuxContainerSecurityContext) { sc.NoNewPrivs = true }
func readOnly(sc *cri.LinuxContainerSecurityContext)   { sc.ReadonlyRootfs = true }
func privileged(sc *cri.LinuxContainerSecurityContext) {
	sc.Privileged, sc.MaskedPaths, sc.ReadonlyPaths, sc.Seccomp = true, nil, nil, nil
}

func seccomp(kind cri.SecurityProfile_ProfileType, ref string) func(*cri.LinuxContainerSecurityContext) {
	return func(sc *cri.LinuxContainerSecurityContext) {
		sc.Seccomp = &cri.SecurityProfile{ProfileType: kind, LocalhostRef: ref}
	}
}

// host gives the pod the host's namespaces of some kinds; its containers are told the same.
func host(network, pid, ipc bool) func(*cri.PodSandboxConfig) {
	return func(c *cri.PodSandboxConfig) {
		o := c.GetLinux().GetSecurityContext().GetNamespaceOptions()
		if network {
			o.Network = cri.NamespaceMode_NODE
		}
		if pid {
			o.Pid = cri.NamespaceMode_NODE
		}
		if ipc {
			o.Ipc = cri.NamespaceMode_NODE
		}
	}
}

func sharedPid(c *cri.PodSandboxConfig) {
	c.GetLinux().GetSecurityContext().GetNamespaceOptions().Pid = cri.NamespaceMode_POD
}

// userns is hostUsers: false.
func userns(c *cri.PodSandboxConfig) {
	ids := []*cri.IDMapping{{HostId: 655360, ContainerId: 0, Length: 65536}}
	c.GetLinux().GetSecurityContext().GetNamespaceOptions().UsernsOptions = &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: ids, Gids: ids}
}

func sysctls(c *cri.PodSandboxConfig) {
	c.Linux.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "80", "kernel.shm_rmid_forced": "1"}
}

// contexts are the table.
func contexts(t *testing.T) []row {
	t.Helper()
	profile := filepath.Join(t.TempDir(), "profile.json")
	if err := os.WriteFile(profile, []byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["chroot"],"action":"SCMP_ACT_ERRNO"}]}`), 0o644); err != nil {
		t.Fatal(err)
	}
	list := func(s ...string) []string { return s }
	user := as(1000, nil)
	none := func(*cri.LinuxContainerSecurityContext) {}
	plain := func(*cri.PodSandboxConfig) {}
	dropAll := caps(nil, list("ALL"), nil)
	return []row{
		{"as the kubelet sends it", "", plain, none},
		{"nothing said", "", plain, func(sc *cri.LinuxContainerSecurityContext) {
			sc.MaskedPaths, sc.ReadonlyPaths, sc.Seccomp = nil, nil, nil
		}},
		{"user", "", plain, user},
		{"user and group", "", plain, as(1000, uid(3000))},
		{"root with a group", "", plain, as(0, uid(3000))},
		{"user without an account", "", plain, as(12345, nil)},
		{"user by name", "", plain, func(sc *cri.LinuxContainerSecurityContext) { sc.RunAsUsername = "www-data" }},
		{"image's user by number", userImages + "user-uid:latest", plain, none},
		{"image's user by name", userImages + "user-username:latest", plain, none},
		{"image's user and group by number", userImages + "user-uid-group:latest", plain, none},
		{"image's user and group by name", userImages + "user-username-group:latest", plain, none},
		{"pod's user over the image's", userImages + "user-uid-group:latest", plain, as(0, nil)},
		{"supplemental groups", "", plain, as(1000, nil, 7, 8)},
		{"supplemental groups, twice and root's", "", plain, as(1000, uid(1000), 8, 8, 0)},
		{"supplemental groups of root", "", plain, as(0, nil, 2000)},
		{"Merge", userImages + "predefined-group:latest", plain, as(1000, uid(1000))},
		{"Merge and supplemental", userImages + "predefined-group:latest", plain, as(1000, uid(1000), 60000)},
		{"Strict", userImages + "predefined-group:latest", plain, all(as(1000, uid(1000)), strict)},
		{"Strict and supplemental", userImages + "predefined-group:latest", plain, all(as(1000, uid(1000), 60000), strict)},
		{"drop ALL", "", plain, dropAll},
		{"drop ALL, add one", "", plain, caps(list("NET_BIND_SERVICE"), list("ALL"), nil)},
		{"drop ALL, add ALL", "", plain, caps(list("ALL"), list("ALL"), nil)},
		{"add ALL", "", plain, caps(list("ALL"), nil, nil)},
		{"add ALL, drop one", "", plain, caps(list("ALL"), list("SYS_ADMIN"), nil)},
		{"add SYS_ADMIN", "", plain, caps(list("SYS_ADMIN"), nil, nil)},
		{"drop two", "", plain, caps(nil, list("CHOWN", "MKNOD"), nil)},
		{"name with its prefix, in lower case", "", plain, caps(list("cap_sys_nice"), nil, nil)},
		{"user, add one", "", plain, all(user, caps(list("SYS_NICE"), nil, nil))},
		{"user, ambient", "", plain, all(user, caps(nil, list("ALL"), list("SYS_NICE")))},
		{"root, ambient", "", plain, caps(nil, nil, list("SYS_NICE"))},
		{"user, ambient and no_new_privs", "", plain, all(user, noNewPrivs, caps(nil, list("ALL"), list("NET_BIND_SERVICE")))},
		{"privileged", "", plain, privileged},
		{"privileged user", "", plain, all(privileged, user)},
		{"privileged, read-only root", "", plain, all(privileged, readOnly)},
		{"privileged ignores seccomp and capabilities", "", plain, all(privileged, seccomp(cri.SecurityProfile_RuntimeDefault, ""), dropAll)},
		{"no_new_privs", "", plain, noNewPrivs},
		{"restricted", "", plain, all(user, noNewPrivs, dropAll, readOnly)},
		{"read-only root", "", plain, readOnly},
		{"seccomp unconfined", "", plain, seccomp(cri.SecurityProfile_Unconfined, "")},
		{"seccomp default with SYS_ADMIN and no_new_privs", "", plain, all(caps(list("SYS_ADMIN"), nil, nil), noNewPrivs)},
		{"seccomp of the node's", "", plain, seccomp(cri.SecurityProfile_Localhost, profile)},
		{"seccomp of the node's, user and no_new_privs", "", plain, all(user, noNewPrivs, seccomp(cri.SecurityProfile_Localhost, profile))},
		{"user namespace", "", userns, none},
		{"user namespace, user", "", userns, as(1000, nil, 7)},
		{"user namespace, add ALL", "", userns, caps(list("ALL"), nil, nil)},
		{"user namespace, restricted", "", userns, all(user, noNewPrivs, dropAll, readOnly)},
		{"host network", "", host(true, false, false), none},
		{"host pid", "", host(false, true, false), none},
		{"host ipc", "", host(false, false, true), none},
		{"host everything", "", host(true, true, true), none},
		{"host everything, privileged", "", host(true, true, true), privileged},
		{"host network, user namespace", "", func(c *cri.PodSandboxConfig) { host(true, false, false)(c); userns(c) }, none},
		{"shared pid namespace", "", sharedPid, none},
		{"unmasked proc", "", plain, func(sc *cri.LinuxContainerSecurityContext) { sc.MaskedPaths, sc.ReadonlyPaths = []string{}, []string{} }},
		{"masks of its own", "", plain, func(sc *cri.LinuxContainerSecurityContext) {
			sc.MaskedPaths, sc.ReadonlyPaths = []string{"/proc/kcore", "/etc/passwd"}, []string{"/etc", "/proc/sys"}
		}},
		{"sysctls", "", sysctls, none},
	}
}
