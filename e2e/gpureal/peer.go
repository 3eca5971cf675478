package gpureal

import (
	"context"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/e2e/harness"
)

// containerd is the runtime, which pulls the image: a specification is to serve it as it serves Berth.
func (n *node) containerd(ctx context.Context) error {
	if _, err := n.lab.StartRegistry(ctx); err != nil {
		return err
	}
	addr, err := os.ReadFile(filepath.Join(n.lab.Run, "registry.ready"))
	if err != nil {
		return err
	}
	tag, err := name.NewTag(Image)
	if err != nil {
		return err
	}
	img, err := tarball.ImageFromPath(n.c.Archive, &tag)
	if err != nil {
		return err
	}
	to, err := name.NewTag(strings.Replace(Image, "registry.k8s.io", string(addr), 1), name.Insecure)
	if err != nil {
		return err
	}
	if err := remote.Write(to, img, remote.WithContext(ctx)); err != nil {
		return err
	}
	if n.cri, err = n.lab.StartContainerd(ctx, harness.Options{}); err != nil {
		return err
	}
	if n.client, err = harness.Dial(n.lab.ContainerdSocket()); err != nil {
		return err
	}
	_, err = n.client.Images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: Image}})
	return err
}
