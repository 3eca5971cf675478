// Package podresources asks the kubelet which container has which device (PodResources API v1, GA since 1.28).
package podresources

import (
	"context"
	"fmt"
	"net"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	res "k8s.io/kubelet/pkg/apis/podresources/v1"

	"github.com/berth-project/berth/deviceplugin/internal/view"
	"github.com/berth-project/berth/proto/rpc"
)

// Client asks one kubelet. It connects for each question: there is one a minute, and kubelets come and go.
type Client struct{ Socket string }

// callLimit is how long the kubelet may take.
const callLimit = 2 * time.Second

// List gives every GPU and every MIG instance that a container has, under whatever resource's name and by whosever
// plugin: what was given under a name that is no longer offered is given all the same.
func (c Client) List(ctx context.Context) ([]view.Holder, error) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	conn, err := grpc.NewClient("unix://"+c.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(rpc.MaxMessage)),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", c.Socket)
		}))
	if err != nil {
		return nil, err
	}
	defer conn.Close() //nolint:errcheck // read only
	list, err := res.NewPodResourcesListerClient(conn).List(ctx, &res.ListPodResourcesRequest{})
	if err != nil {
		return nil, fmt.Errorf("PodResources at %s: %w", c.Socket, rpc.FromStatus(err))
	}
	var all []view.Holder
	for _, p := range list.GetPodResources() {
		for _, c := range p.GetContainers() {
			for _, d := range c.GetDevices() {
				for _, id := range d.GetDeviceIds() {
					if !strings.HasPrefix(id, "GPU-") && !strings.HasPrefix(id, "MIG-") {
						continue
					}
					all = append(all, view.Holder{Namespace: p.GetNamespace(), Pod: p.GetName(), Container: c.GetName(), Resource: d.GetResourceName(), ID: id})
				}
			}
		}
	}
	return all, nil
}
