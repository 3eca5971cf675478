// Command noop is berth-csi's loops over a driver that makes nothing: the yardstick of `make bench-csi`. What it cannot
// do faster is the API server's part.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/berth-project/berth/csi/internal/cluster"
)

type nothing struct {
	csi.UnimplementedControllerServer
	csi.UnimplementedGroupControllerServer
}

func (nothing) CreateVolume(_ context.Context, r *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	return &csi.CreateVolumeResponse{Volume: &csi.Volume{VolumeId: r.GetName(), CapacityBytes: r.GetCapacityRange().GetRequiredBytes()}}, nil
}

func (nothing) DeleteVolume(context.Context, *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	return &csi.DeleteVolumeResponse{}, nil
}

func (nothing) ControllerExpandVolume(_ context.Context, r *csi.ControllerExpandVolumeRequest) (*csi.ControllerExpandVolumeResponse, error) {
	return &csi.ControllerExpandVolumeResponse{CapacityBytes: r.GetCapacityRange().GetRequiredBytes()}, nil
}

func (nothing) GetCapacity(context.Context, *csi.GetCapacityRequest) (*csi.GetCapacityResponse, error) {
	const free = 1 << 50
	return &csi.GetCapacityResponse{AvailableCapacity: free, MaximumVolumeSize: wrapperspb.Int64(free)}, nil
}

func (nothing) ListVolumes(context.Context, *csi.ListVolumesRequest) (*csi.ListVolumesResponse, error) {
	return &csi.ListVolumesResponse{}, nil
}

func main() {
	kubeconfig, node, name := flag.String("kubeconfig", "", ""), flag.String("node", "", ""), flag.String("name", "", "the driver's")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	l, err := cluster.New(cluster.Config{
		Name: *name, Node: *node, TopologyKey: *name + "/node", Kubeconfig: *kubeconfig, QPS: 200, Burst: 400, Workers: 64,
		Namespace: "kube-system", OrphanAfter: 24 * time.Hour, Created: func(string) time.Time { return time.Time{} }, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	}, nothing{})
	if err == nil {
		err = l.Run(ctx)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "noop:", err)
		os.Exit(1) //nolint:gocritic // stop has nothing left to do
	}
}
