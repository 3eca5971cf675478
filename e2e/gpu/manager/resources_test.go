package manager

import (
	"context"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"

	"google.golang.org/grpc"
	res "k8s.io/kubelet/pkg/apis/podresources/v1"
)

// resources serves the kubelet's PodResources API (v1, List alone) from what the device manager gave to pods that
// are there.
type resources struct {
	res.UnimplementedPodResourcesListerServer
	k *kubelet
}

// serveResources serves at the kubelet's own path until the test ends.
func (k *kubelet) serveResources() {
	k.t.Helper()
	path := "/var/lib/kubelet/pod-resources/kubelet.sock"
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		k.t.Fatal(err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		k.t.Fatal(err)
	}
	s, done := grpc.NewServer(), make(chan error, 1)
	res.RegisterPodResourcesListerServer(s, &resources{k: k})
	go func() { done <- s.Serve(l) }()
	k.t.Cleanup(func() {
		s.Stop()
		if err := <-done; err != nil {
			k.t.Error(err)
		}
	})
}

// List implements res.PodResourcesListerServer.
func (r *resources) List(context.Context, *res.ListPodResourcesRequest) (*res.ListPodResourcesResponse, error) {
	out := &res.ListPodResourcesResponse{}
	for _, pod := range r.k.active() {
		c := &res.ContainerResources{Name: "c"}
		have := r.k.devices(pod.Name)
		for _, name := range slices.Sorted(maps.Keys(have)) {
			c.Devices = append(c.Devices, &res.ContainerDevices{ResourceName: name, DeviceIds: have[name]})
		}
		out.PodResources = append(out.PodResources, &res.PodResources{Name: pod.Name, Namespace: "default", Containers: []*res.ContainerResources{c}})
	}
	return out, nil
}
