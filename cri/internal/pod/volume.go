package pod

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/cri/internal/rootfs"
	"github.com/berth-project/berth/internal/inroot"
	"github.com/berth-project/berth/proto/errs"
)

// imageVolume mounts the content of an image for mount i of a container and returns the directory to bind, which
// is inside the image whatever links it holds. The kubelet knows failures by their prefix.
func (m *Manager) imageVolume(c *Container, i int, mt *cri.Mount) (string, error) {
	dir, err := m.mountImage(c, i, mt)
	if err != nil {
		return "", &errs.Prefixed{Prefix: "ImageVolumeMountFailed", Err: fmt.Errorf("mounts[%d] (image %q): %w", i, mt.GetImage().GetImage(), err)}
	}
	return dir, nil
}

func (m *Manager) imageDir(id string, i int) string {
	return filepath.Join(m.cfg.State, "images", fmt.Sprintf("%s-%d", id, i))
}

// holder names the pin of the image that mount i of a container shows.
func holder(id string, i int) string { return fmt.Sprintf("%s/%d", id, i) }

// imagesOf are the images that an earlier build's record does not name, by holder, as its configuration names them: an
// image by its id, or a name that may stand for another one by now.
func imagesOf(c *Container) map[string]string {
	refs := map[string]string{}
	for i, mt := range c.Config.GetMounts() {
		if id, held := c.volumes[holder(c.ID, i)]; held && id == "" {
			refs[holder(c.ID, i)] = mt.GetImage().GetImage()
		}
	}
	return refs
}

func (m *Manager) mountImage(c *Container, i int, mt *cri.Mount) (string, error) {
	img, err := m.images.Get(mt.GetImage().GetImage())
	if err != nil {
		return "", err
	}
	holder := holder(c.ID, i)
	root, err := m.images.Use(holder, img.ID)
	if err != nil {
		return "", err
	}
	if c.volumes == nil {
		c.volumes = map[string]string{}
	}
	c.volumes[holder] = img.ID
	dir := m.imageDir(c.ID, i)
	if err := rootfs.Mount(root.Lower, dir); err != nil {
		return "", err
	}
	return subPath(dir, mt.GetImageSubPath())
}

// subPath resolves a path inside an image's mount: links in it end inside, and the result is a plain path below
// dir that no link can redirect, because the mount is read-only.
func subPath(dir, sub string) (string, error) {
	if sub == "" {
		return dir, nil
	}
	if !filepath.IsLocal(sub) {
		return "", fmt.Errorf("image_sub_path %q leaves the image", sub)
	}
	r, err := inroot.Open(dir)
	if err != nil {
		return "", err
	}
	defer r.Close() //nolint:errcheck // O_PATH
	f, err := r.Open(sub, unix.O_PATH, 0)
	if err != nil {
		return "", fmt.Errorf("image_sub_path: %w", err)
	}
	defer f.Close() //nolint:errcheck // O_PATH
	real, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil {
		return "", err
	}
	if real != dir && !strings.HasPrefix(real, dir+"/") {
		return "", fmt.Errorf("image_sub_path %q leaves the image", sub)
	}
	return real, nil
}

func (m *Manager) unmountImages(c *Container) error {
	var all []error
	for i, mt := range c.Config.GetMounts() {
		if mt.GetImage().GetImage() != "" {
			all = append(all, rootfs.Unmount(m.imageDir(c.ID, i)))
		}
	}
	return errors.Join(all...)
}
