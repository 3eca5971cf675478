package pod

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/cri/internal/spec"
	"github.com/berth-project/berth/proto/errs"
)

// shmSize is the size of a pod's /dev/shm, as on peers.
const shmSize = 64 << 20

// files are the paths a pod's containers mount; see makeFiles.
func (m *Manager) files(p *Pod) spec.Files {
	dir := m.podDir(p.ID)
	f := spec.Files{ResolvConf: filepath.Join(dir, "resolv.conf"), Hostname: filepath.Join(dir, "hostname"), Hosts: filepath.Join(dir, "hosts")}
	f.Shm = filepath.Join(dir, "shm")
	if p.Config.GetLinux().GetSecurityContext().GetNamespaceOptions().GetIpc() == cri.NamespaceMode_NODE {
		f.Shm = "/dev/shm"
	}
	return f
}

// makeFiles writes resolv.conf, hostname and hosts, and mounts the pod's /dev/shm. The directory is 0711, so that
// a container in a user namespace reaches its files through it and lists nothing.
func (m *Manager) makeFiles(p *Pod) error {
	dir := m.podDir(p.ID)
	if err := os.MkdirAll(dir, 0o711); err != nil { //nolint:gosec // see above
		return err
	}
	f := m.files(p)
	resolv, err := resolvConf(p.Config.GetDnsConfig())
	if err != nil {
		return err
	}
	hostname := p.Config.GetHostname()
	if p.hostNetwork() || hostname == "" {
		if hostname, err = os.Hostname(); err != nil {
			return err
		}
	}
	hosts := "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
	if b, err := os.ReadFile("/etc/hosts"); err == nil && p.hostNetwork() {
		hosts = string(b)
	}
	for path, text := range map[string]string{f.ResolvConf: resolv, f.Hostname: hostname + "\n", f.Hosts: hosts} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil { //nolint:gosec // read by any user of the pod
			return err
		}
	}
	if f.Shm == "/dev/shm" {
		return nil
	}
	return mountShm(f.Shm)
}

func mountShm(dir string) error {
	if err := os.MkdirAll(dir, 0o711); err != nil { //nolint:gosec // becomes a mount point
		return err
	}
	err := unix.Mount("shm", dir, "tmpfs", unix.MS_NOEXEC|unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("mode=1777,size=%d", shmSize))
	if err != nil {
		return fmt.Errorf("mount %s: %w", dir, err)
	}
	return nil
}

// resolvConf renders a DNS config (resolv.conf(5)); without one it is the host's.
func resolvConf(c *cri.DNSConfig) (string, error) {
	if len(c.GetServers())+len(c.GetSearches())+len(c.GetOptions()) == 0 {
		b, err := os.ReadFile("/etc/resolv.conf")
		if errors.Is(err, os.ErrNotExist) {
			return "", nil
		}
		return string(b), err
	}
	var b strings.Builder
	line := func(key string, words ...string) error {
		for _, w := range words {
			if w == "" || strings.ContainsAny(w, "\n\r\x00") {
				return errs.InvalidArgument.Errorf("dns_config: %s %q is not one word on one line", key, w)
			}
		}
		if len(words) > 0 {
			fmt.Fprintf(&b, "%s %s\n", key, strings.Join(words, " "))
		}
		return nil
	}
	all := []error{line("search", c.GetSearches()...)}
	for _, s := range c.GetServers() {
		all = append(all, line("nameserver", s))
	}
	all = append(all, line("options", c.GetOptions()...))
	return b.String(), errors.Join(all...)
}

// removeFiles undoes makeFiles.
func (m *Manager) removeFiles(id string) error {
	dir := m.podDir(id)
	if err := unix.Unmount(filepath.Join(dir, "shm"), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil &&
		!errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount shm of pod %s: %w", id, err)
	}
	return os.RemoveAll(dir)
}
