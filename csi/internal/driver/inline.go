package driver

import (
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/berth-project/berth/csi/internal/config"
	"github.com/berth-project/berth/csi/internal/volume"
	"github.com/berth-project/berth/internal/nearest"
	"github.com/berth-project/berth/proto/errs"
)

// inlineAttributes are what the author of a pod may say of an inline volume: nothing that chooses where it is.
func inlineAttributes() []string { return []string{"size", "fsType"} }

// publishInline makes a volume that lives as long as its pod, and publishes it.
func (d *Driver) publishInline(ctx context.Context, r *csi.NodePublishVolumeRequest, u volume.Use) (*csi.NodePublishVolumeResponse, error) {
	req := volume.CreateRequest{Name: r.GetVolumeId(), Block: u.Block, FSType: u.FSType, Inline: true, Owner: map[string]string{}}
	for _, k := range slices.Sorted(maps.Keys(r.GetVolumeContext())) {
		v := r.GetVolumeContext()[k]
		switch {
		case k == "size":
			n, err := config.Bytes(v)
			if err != nil || n == 0 {
				return nil, errs.InvalidArgument.Errorf("volumeAttributes.size: %q is no size: want a number followed by Ki, Mi, Gi or Ti", v)
			}
			req.Required = n
		case k == "fsType":
			req.FSType, u.FSType = v, v
		case k == contextPrefix+"pod.name":
			req.Owner["pod"] = v
		case k == contextPrefix+"pod.namespace":
			req.Owner["namespace"] = v
		case strings.HasPrefix(k, contextPrefix): // uid, service account: not needed, tokens never looked at
		default:
			return nil, errs.InvalidArgument.Errorf("volumeAttributes.%s is not allowed, nearest is %q; allowed are %v", k, nearest.To(k, inlineAttributes()), inlineAttributes())
		}
	}
	return &csi.NodePublishVolumeResponse{}, d.m.PublishInline(ctx, req, volume.PublishRequest{Target: r.GetTargetPath(), ReadOnly: r.GetReadonly(), Use: u})
}
