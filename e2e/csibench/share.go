package csibench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/berth-project/berth/e2e/bench/report"
)

// share is the driver's own part of a claim: the CreateVolume call. The peer is the pool's limit in the terms,
// so that a ratio of at most 1 is what is wanted.
func (b *bench) share(ctx context.Context, r *report.Report) error {
	p, err := b.daemon(ctx, false)
	if err != nil {
		return err
	}
	for _, c := range []struct {
		name, pool, fs string
		limit          float64
	}{{"driver_ms_btrfs", "btrfs", "", 5}, {"driver_ms_loop_ext4", "loop", "ext4", 40}} {
		s, err := creates(ctx, b.socket(), c.pool, c.fs)
		if err != nil {
			return errors.Join(err, p.Stop())
		}
		r.Add(c.name+"_p50", "ms", s.P50(), c.limit)
		r.Add(c.name+"_p95", "ms", s.P95(), c.limit)
	}
	return p.Stop()
}

func dial(socket string) (*grpc.ClientConn, error) {
	return grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
}

func request(name, pool, fs string, size int64) *csi.CreateVolumeRequest {
	return &csi.CreateVolumeRequest{
		Name: name, Parameters: map[string]string{"pool": pool}, CapacityRange: &csi.CapacityRange{RequiredBytes: size},
		VolumeCapabilities: []*csi.VolumeCapability{{
			AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: fs}},
			AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER},
		}},
	}
}

// creates is the time of CreateVolume calls, one after the other, in ms.
func creates(ctx context.Context, socket, pool, fs string) (s report.Series, err error) {
	conn, err := dial(socket)
	if err != nil {
		return s, err
	}
	defer conn.Close() //nolint:errcheck // nothing is in flight
	c := csi.NewControllerClient(conn)
	for i := range 60 {
		start := time.Now()
		v, err := c.CreateVolume(ctx, request(fmt.Sprintf("t%d", i), pool, fs, 1<<30))
		took := time.Since(start)
		if err != nil {
			return s, err
		}
		if i >= 10 { // warm
			s = append(s, float64(took.Microseconds())/1000)
		}
		if _, err := c.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: v.GetVolume().GetVolumeId()}); err != nil {
			return s, err
		}
	}
	return s, nil
}
