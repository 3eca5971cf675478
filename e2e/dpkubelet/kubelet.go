// Package dpkubelet is the little of a kubelet that a device plugin needs: the legacy registration socket, and the
// calls on a plugin. Benchmarks and the run on a real GPU use it where a whole kubelet would only be in the way.
package dpkubelet

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	dp "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

// Kubelet is the registration server of a kubelet, which is restarted by stopping it and starting another one.
type Kubelet struct {
	dp.UnimplementedRegistrationServer
	dir    string
	server *grpc.Server
	done   chan struct{}
	joined chan string // endpoints, as they register
}

// Start does what the device manager does at its start: it removes every socket, and listens.
func Start(dir string) (*Kubelet, error) {
	old, err := filepath.Glob(filepath.Join(dir, "*.sock"))
	if err != nil {
		return nil, err
	}
	for _, f := range old {
		if err := os.Remove(f); err != nil && !os.IsNotExist(err) {
			return nil, err
		}
	}
	l, err := net.Listen("unix", filepath.Join(dir, "kubelet.sock"))
	if err != nil {
		return nil, err
	}
	k := &Kubelet{dir: dir, server: grpc.NewServer(), done: make(chan struct{}), joined: make(chan string, 16)}
	dp.RegisterRegistrationServer(k.server, k)
	go func() {
		defer close(k.done)
		_ = k.server.Serve(l) // ends with Stop
	}()
	return k, nil
}

// Stop ends it.
func (k *Kubelet) Stop() {
	k.server.Stop()
	<-k.done
}

// Register implements dp.RegistrationServer.
func (k *Kubelet) Register(_ context.Context, r *dp.RegisterRequest) (*dp.Empty, error) {
	k.joined <- filepath.Join(k.dir, r.GetEndpoint())
	return &dp.Empty{}, nil
}

// Plugin is a connection to a registered plugin, and its list.
type Plugin struct {
	conn *grpc.ClientConn
	dp.DevicePluginClient
	// IDs are the healthy devices of the first full list.
	IDs []string
}

// Connect waits for a registration and for a first list of n healthy devices.
func (k *Kubelet) Connect(ctx context.Context, n int, limit time.Duration) (*Plugin, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var socket string
	select {
	case socket = <-k.joined:
	case <-ctx.Done():
		return nil, fmt.Errorf("no plugin registered within %v", limit)
	}
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		}))
	if err != nil {
		return nil, err
	}
	p := &Plugin{conn: conn, DevicePluginClient: dp.NewDevicePluginClient(conn)}
	stream, err := p.ListAndWatch(context.WithoutCancel(ctx), &dp.Empty{}) // goes on as the kubelet's does, until Close
	if err != nil {
		return nil, fmt.Errorf("list: %w", err)
	}
	for len(p.IDs) < n {
		list, err := stream.Recv()
		if err != nil {
			return nil, fmt.Errorf("list: %w", err)
		}
		p.IDs = p.IDs[:0]
		for _, d := range list.GetDevices() {
			if d.GetHealth() == dp.Healthy {
				p.IDs = append(p.IDs, d.GetID())
			}
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("%d of %d devices within %v", len(p.IDs), n, limit)
		}
	}
	return p, nil
}

// Close ends its connection and its stream.
func (p *Plugin) Close() { _ = p.conn.Close() }
