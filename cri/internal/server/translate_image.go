package server

import (
	"strconv"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/cri/internal/image"
)

func imageItem(i *image.Image) *cri.Image {
	out := &cri.Image{
		Id: i.ID, RepoTags: i.Tags, RepoDigests: i.Digests, Size: i.Size, Pinned: i.Pinned,
		Spec: &cri.ImageSpec{Image: i.ID, Annotations: i.Annotations},
	}
	user, _, _ := strings.Cut(i.Config.Config.User, ":")
	if user == "" {
		return out
	}
	// only a number in its one plain form is a uid; the kubelet sends back what it is told here, and package spec
	// refuses the rest
	if uid, err := strconv.ParseInt(user, 10, 32); err == nil && uid >= 0 && strconv.FormatInt(uid, 10) == user {
		out.Uid = &cri.Int64Value{Value: uid}
	} else {
		out.Username = user
	}
	return out
}
