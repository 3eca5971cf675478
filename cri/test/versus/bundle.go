package main

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/cri/internal/spec"
)

// bundle is what both sides run: a root file system and how to make a spec for a cgroup.
type bundle struct {
	dir, rootfs string
	files       spec.Files
	lastCap     int
}

// newBundle makes the root file system and the files of the pod, its /dev/shm among them.
func newBundle(c config) (*bundle, error) {
	b := &bundle{dir: c.work, rootfs: filepath.Join(c.work, "rootfs"), lastCap: lastCap()}
	at := func(name string) string { return filepath.Join(c.work, "pod", name) }
	b.files = spec.Files{ResolvConf: at("resolv.conf"), Hostname: at("hostname"), Hosts: at("hosts"), Shm: at("shm")}
	for _, d := range []string{"bin", "etc", "dev", "proc", "sys"} {
		if err := os.MkdirAll(filepath.Join(b.rootfs, d), 0o755); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(b.files.Shm, 0o755); err != nil {
		return nil, err
	}
	return b, errors.Join(
		install(c.program, filepath.Join(b.rootfs, "bin", "true")),
		os.WriteFile(b.files.ResolvConf, []byte("nameserver 10.96.0.10\n"), 0o644),
		os.WriteFile(b.files.Hostname, []byte("versus\n"), 0o644),
		os.WriteFile(b.files.Hosts, []byte("127.0.0.1 localhost\n"), 0o644),
		unix.Mount("shm", b.files.Shm, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=1777,size=64m"),
	)
}

func install(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close() //nolint:errcheck // read only
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// lastCap is the highest capability that this kernel knows.
func lastCap() int {
	last := -1
	for unix.Prctl(unix.PR_CAPBSET_READ, uintptr(last+1), 0, 0, 0) == nil { //nolint:gosec // small
		last++
	}
	return last
}

// spec is what berth-cri makes of a kubelet's plain container: RuntimeDefault, masked paths, limits, the pod's files.
func (b *bundle) spec(id, group string) (*specs.Spec, []string, error) {
	ns := &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}
	limits := &cri.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 100000, CpuShares: 512, MemoryLimitInBytes: 64 << 20, OomScoreAdj: 900}
	out, err := spec.Compile(spec.Input{
		ID: id, PodID: pod, Hostname: "node", CgroupPath: group, CgroupNS: true, Files: b.files, LastCap: b.lastCap,
		Sandbox: &cri.PodSandboxConfig{
			Metadata: &cri.PodSandboxMetadata{Name: "versus", Uid: "versus", Namespace: "bench"}, Hostname: "versus",
			Linux: &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: ns}},
		},
		Container: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: "c"}, Command: []string{"/bin/true"},
			Linux: &cri.LinuxContainerConfig{Resources: limits, SecurityContext: &cri.LinuxContainerSecurityContext{
				NamespaceOptions: ns, NoNewPrivs: true, Seccomp: &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault},
				MaskedPaths:   []string{"/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"},
				ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
			}},
		},
		Image: ocispec.ImageConfig{Env: []string{"PATH=/bin"}},
	})
	return out.Spec, out.Join, err
}

// write puts the spec where an OCI program looks for it; what the pod has already is entered by path. The version is what
// crun 1.8 knows: nothing in the spec is newer.
func (b *bundle) write(dir string, s *specs.Spec, joined map[string]string) error {
	s.Version = "1.0.2"
	s.Root = &specs.Root{Path: b.rootfs, Readonly: s.Root != nil && s.Root.Readonly}
	for i, ns := range s.Linux.Namespaces {
		s.Linux.Namespaces[i].Path = joined[short(ns.Type)]
	}
	raw, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return errors.Join(os.MkdirAll(dir, 0o711), os.WriteFile(filepath.Join(dir, "config.json"), raw, 0o600))
}

// short is a namespace as proto/shim/v1 names it.
func short(t specs.LinuxNamespaceType) string {
	if t == specs.NetworkNamespace {
		return "net"
	}
	return string(t)
}
