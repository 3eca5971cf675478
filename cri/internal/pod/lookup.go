package pod

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/cri/internal/rootfs"
	"github.com/berth-project/berth/cri/internal/spec"
)

// accountsLimit bounds the passwd and group files that are read of an image (CVE-2026-47262).
const accountsLimit = 10 << 20

// accountCache holds the accounts of images by image id. Layers never change, so an entry is right for ever; the
// cache is emptied when it holds too many.
type accountCache struct {
	mu  sync.Mutex
	all map[string]spec.Accounts
}

func (a *accountCache) of(imageID string, lower []string) (spec.Accounts, error) {
	a.mu.Lock()
	have, ok := a.all[imageID]
	a.mu.Unlock()
	if ok {
		return have, nil
	}
	acc, err := readAccounts(lower)
	if err != nil {
		return acc, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.all == nil || len(a.all) >= 256 {
		a.all = map[string]spec.Accounts{}
	}
	a.all[imageID] = acc
	return acc, nil
}

func readAccounts(lower []string) (spec.Accounts, error) {
	if len(lower) == 0 {
		return spec.Accounts{}, nil
	}
	root, err := rootfs.Open(lower)
	if err != nil {
		return spec.Accounts{}, err
	}
	defer root.Close() //nolint:errcheck // read only
	read := func(name string) ([]byte, error) {
		b, err := root.ReadFile(name, accountsLimit)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			return nil, nil
		}
		return b, err
	}
	passwd, err := read("/etc/passwd")
	if err != nil {
		return spec.Accounts{}, err
	}
	group, err := read("/etc/group")
	return spec.ParseAccounts(passwd, group), err
}

// profileCache registers each seccomp profile once, by its digest, and makes the default one once for each set of
// capabilities: making and hashing it anew would be a third of a CreateContainer.
type profileCache struct {
	mu       sync.Mutex
	known    map[string]bool
	defaults map[string]*specs.LinuxSeccomp // by bounding set; never changed
	digests  map[*specs.LinuxSeccomp]string // of defaults
}

// maxDefaults bounds the sets of capabilities that are remembered; nodes have a handful.
const maxDefaults = 64

func (c *profileCache) runtimeDefault(s *specs.Spec) (*specs.LinuxSeccomp, error) {
	key := ""
	if s.Process.Capabilities != nil {
		key = strings.Join(s.Process.Capabilities.Bounding, ",")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.defaults[key]; p != nil {
		return p, nil
	}
	p, err := spec.DefaultSeccomp(s)
	if err != nil {
		return nil, err
	}
	if c.defaults == nil || len(c.defaults) >= maxDefaults {
		c.defaults, c.digests = map[string]*specs.LinuxSeccomp{}, map[*specs.LinuxSeccomp]string{}
	}
	c.defaults[key] = p
	return p, nil
}

func (c *profileCache) digest(p *specs.LinuxSeccomp, register func(string, json.RawMessage) error) (string, error) {
	if p == nil {
		return "", nil
	}
	c.mu.Lock()
	d := c.digests[p]
	c.mu.Unlock()
	if d != "" {
		return d, nil
	}
	b, err := json.Marshal(p)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(b)
	d = "sha256:" + hex.EncodeToString(sum[:])
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known == nil {
		c.known = map[string]bool{}
	}
	if !c.known[d] {
		if err := register(d, b); err != nil {
			return "", err
		}
		c.known[d] = true
	}
	for _, cached := range c.defaults {
		if cached == p {
			c.digests[p] = d
		}
	}
	return d, nil
}

// profileKind records profiles by digest, without "sha256:": a container outlives the daemon that compiled its spec,
// and its later execs, like its start, need the same profile.
const profileKind = "seccomp"

func (m *Manager) keepProfile(digest string, profile json.RawMessage) error {
	m.shims.AddProfile(digest, profile)
	return m.records.Put(profileKind, strings.TrimPrefix(digest, "sha256:"), profile)
}

// recoverProfiles registers the profiles that recorded containers name, and drops the records of all others.
func (m *Manager) recoverProfiles() error {
	all, err := m.records.Load(profileKind)
	if err != nil {
		return err
	}
	used := map[string]bool{}
	for _, c := range m.Containers() {
		used[c.seccomp] = true
	}
	for id, profile := range all {
		if d := "sha256:" + id; used[d] {
			m.shims.AddProfile(d, profile)
		} else {
			err = errors.Join(err, m.records.Delete(profileKind, id))
		}
	}
	return err
}

// devicesBelow is the device node at path, named to in the container, or all those below it if it is a
// directory. /dev/pts, /dev/shm, /dev/mqueue and /dev/fd are left out: a container has its own.
func devicesBelow(path, to string) ([]spec.Device, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if d, ok := device(to, &st); ok {
		return []spec.Device{d}, nil
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil, fmt.Errorf("%s is neither a device nor a directory", path)
	}
	var all []spec.Device
	err := filepath.WalkDir(path, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // a node that vanished is not there to be given
		}
		if e.IsDir() {
			switch e.Name() {
			case "pts", "shm", "mqueue", "fd", ".lxc", ".lxd-mounts", ".udev":
				return fs.SkipDir
			}
			return nil
		}
		var st unix.Stat_t
		if unix.Lstat(p, &st) != nil || e.Name() == "console" || strings.HasPrefix(e.Name(), "ptmx") {
			return nil
		}
		if d, ok := device(filepath.Join(to, strings.TrimPrefix(p, path)), &st); ok {
			all = append(all, d)
		}
		return nil
	})
	return all, err
}

func device(path string, st *unix.Stat_t) (spec.Device, bool) {
	d := spec.Device{
		Path: path, Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)),
		Mode: st.Mode & 0o777, UID: st.Uid, GID: st.Gid,
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFBLK:
		d.Type = "b"
	case unix.S_IFCHR:
		d.Type = "c"
	default:
		return d, false
	}
	return d, true
}

// stopSignal is the pod's choice, else the image's, else SIGTERM.
func stopSignal(c *cri.ContainerConfig, image string) (unix.Signal, bool) {
	if s := c.GetStopSignal(); s != cri.Signal_SIGNAL_RUNTIME_DEFAULT {
		name := strings.TrimPrefix(s.String(), "SIGNAL_")
		name = strings.ReplaceAll(strings.ReplaceAll(name, "PLUS", "+"), "MINUS", "-")
		if sig, ok := spec.Signal(name); ok {
			return sig, true
		}
	}
	return spec.Signal(image)
}
