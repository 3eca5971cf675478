package pod

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/cri/internal/cdi"
	"github.com/berth-project/berth/cri/internal/ldcache"
	"github.com/berth-project/berth/cri/internal/rootfs"
)

const (
	loaderCache = "/etc/ld.so.cache"
	// loaderCacheLimit bounds what is read of an image: a full desktop's cache has 300 KiB.
	loaderCacheLimit = 8 << 20
)

// inject gives a container the CDI devices that the kubelet asks for. Libraries that a specification wants before
// all others go in front of the image's ld.so.cache, which is mounted over its own; an image without one has a
// loader that looks in the default directories, where they are mounted too.
func (m *Manager) inject(c *Container, s *specs.Spec, lower []string) error {
	var field []string
	for _, d := range c.Config.GetCDIDevices() {
		field = append(field, d.GetName())
	}
	names, err := cdi.Requested(field, c.Config.GetAnnotations())
	if err != nil || len(names) == 0 {
		return err
	}
	r, err := m.cdi.Resolve(names)
	if err != nil {
		return err
	}
	if err := cdi.Apply(s, r); err != nil {
		return err
	}
	libraries := cdi.Libraries(r)
	if len(libraries) == 0 {
		return nil
	}
	if c.loaderCache, err = mergeLoaderCache(lower, libraries); err != nil {
		// what is in the image decides nothing but its own libraries
		m.cfg.Log.Warn("the image's ld.so.cache is left as it is", "container", c.ID, "error", err)
		return nil
	}
	if c.loaderCache != nil {
		s.Mounts = append(s.Mounts, specs.Mount{
			Source: filepath.Join(m.containerDir(c.ID), "ld.so.cache"), Destination: loaderCache, Type: "bind",
			Options: []string{"bind", "ro", "nosuid", "nodev", "noexec", "rprivate"},
		})
	}
	return nil
}

// mergeLoaderCache is nil for an image without a cache.
func mergeLoaderCache(lower []string, libraries map[string]string) ([]byte, error) {
	root, err := rootfs.Open(lower)
	if err != nil {
		return nil, err
	}
	defer root.Close() //nolint:errcheck // read only
	b, err := root.ReadFile(loaderCache, loaderCacheLimit)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	have, err := ldcache.Parse(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", loaderCache, err)
	}
	return ldcache.Merge(have, libraries).Bytes(), nil
}
