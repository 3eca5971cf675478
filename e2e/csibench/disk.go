package csibench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/berth-project/berth/e2e/bench/report"
)

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

// disk compares a volume with the file system that its pool is on, by fio, interleaved.
func (b *bench) disk(ctx context.Context, r *report.Report, pool, fs string) (err error) {
	conn, err := dial(b.socket())
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // nothing is in flight
	v, err := csi.NewControllerClient(conn).CreateVolume(ctx, request("fio-"+pool, pool, fs, 1<<30))
	if err != nil {
		return err
	}
	id, staging, plain := v.GetVolume().GetVolumeId(), filepath.Join(b.kubelet(), "fio-"+pool), filepath.Join(b.mount(pool), "plain")
	if err := errors.Join(os.Mkdir(staging, 0o700), os.Mkdir(plain, 0o700)); err != nil {
		return err
	}
	n := csi.NewNodeClient(conn)
	if _, err := n.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{VolumeId: id, StagingTargetPath: staging, VolumeCapability: request("", pool, fs, 0).GetVolumeCapabilities()[0]}); err != nil {
		return err
	}
	for _, job := range []string{"write", "read", "randwrite", "randread"} {
		var on, off report.Series
		for range 3 {
			for dir, into := range map[string]*report.Series{staging: &on, plain: &off} {
				rate, ferr := fio(ctx, job, dir)
				if ferr != nil {
					return ferr
				}
				*into = append(*into, rate)
			}
		}
		r.Add(fmt.Sprintf("fio_%s_%s", job, pool), "MiB/s", on.P50(), off.P50())
	}
	_, err = n.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: id, StagingTargetPath: staging})
	_, derr := csi.NewControllerClient(conn).DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: id})
	return errors.Join(err, derr, os.RemoveAll(plain), os.Remove(staging))
}

// fio runs one job for two seconds by direct I/O on a file that is written in full first, and returns MiB/s.
func fio(ctx context.Context, job, dir string) (float64, error) {
	size := map[string]string{"write": "1M", "read": "1M", "randwrite": "4k", "randread": "4k"}[job]
	cmd := exec.CommandContext(ctx, "fio", "--name=x", "--filename="+dir+"/fio", "--size=256M", "--rw="+job, "--bs="+size, "--direct=1",
		"--ioengine=psync", "--overwrite=1", "--runtime=2", "--time_based", "--output-format=json")
	out, err := cmd.Output()
	if err != nil {
		return 0, fmt.Errorf("fio: %w: %s", err, out)
	}
	var res struct {
		Jobs []struct{ Read, Write struct{ Bw float64 } }
	}
	if err := json.Unmarshal(out, &res); err != nil || len(res.Jobs) != 1 {
		return 0, fmt.Errorf("fio's output: %w", errors.Join(err, errors.ErrUnsupported))
	}
	return (res.Jobs[0].Read.Bw + res.Jobs[0].Write.Bw) / 1024, nil
}
