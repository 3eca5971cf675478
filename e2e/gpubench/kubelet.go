// Package gpubench measures berth-gpu as the kubelet meets it: over its sockets, on the profile of the largest node
// there is (sixteen A100, all joined by NVLink). No peer can be had here; what is compared is the exhaustive search
// for the same question, and the cost of an empty call.
package gpubench

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

// kubelet is the registration server of a kubelet, which is restarted by closing it and making another one.
type kubelet struct {
	dp.UnimplementedRegistrationServer
	dir    string
	server *grpc.Server
	done   chan struct{}
	joined chan string // endpoints, as they register
}

// startKubelet does what the device manager does at its start: it removes every socket, and listens.
func startKubelet(dir string) (*kubelet, error) {
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
	k := &kubelet{dir: dir, server: grpc.NewServer(), done: make(chan struct{}), joined: make(chan string, 16)}
	dp.RegisterRegistrationServer(k.server, k)
	go func() {
		defer close(k.done)
		_ = k.server.Serve(l) // ends with stop
	}()
	return k, nil
}

func (k *kubelet) stop() {
	k.server.Stop()
	<-k.done
}

// Register implements dp.RegistrationServer.
func (k *kubelet) Register(_ context.Context, r *dp.RegisterRequest) (*dp.Empty, error) {
	k.joined <- filepath.Join(k.dir, r.GetEndpoint())
	return &dp.Empty{}, nil
}

// plugin is a connection to a registered plugin, and its list.
type plugin struct {
	conn *grpc.ClientConn
	dp.DevicePluginClient
	ids []string
}

// connect waits for a registration and for a first list of n healthy devices.
func (k *kubelet) connect(ctx context.Context, n int, limit time.Duration) (*plugin, error) {
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
	p := &plugin{conn: conn, DevicePluginClient: dp.NewDevicePluginClient(conn)}
	stream, err := p.ListAndWatch(context.WithoutCancel(ctx), &dp.Empty{}) // goes on as the kubelet's does, until close
	if err != nil {
		return nil, fmt.Errorf("list: %w", err)
	}
	for len(p.ids) < n {
		list, err := stream.Recv()
		if err != nil {
			return nil, fmt.Errorf("list: %w", err)
		}
		p.ids = p.ids[:0]
		for _, d := range list.GetDevices() {
			if d.GetHealth() == dp.Healthy {
				p.ids = append(p.ids, d.GetID())
			}
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("%d of %d devices within %v", len(p.ids), n, limit)
		}
	}
	return p, nil
}

func (p *plugin) close() { _ = p.conn.Close() }
