// Package registration tells the kubelet that there is a CSI driver: it serves the plugin registration API
// (k8s.io/kubelet, pluginregistration/v1) on a socket in the kubelet's plugins_registry, which the kubelet watches.
package registration

import (
	"context"
	"log/slog"

	"google.golang.org/grpc"
	v1 "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/berth-project/berth/proto/rpc"
)

// Server answers the kubelet. Use [New].
type Server struct {
	v1.UnsafeRegistrationServer
	name, endpoint string
	log            *slog.Logger
}

// New makes the server of a driver whose CSI socket is endpoint.
func New(name, endpoint string, log *slog.Logger) *Server {
	return &Server{name: name, endpoint: endpoint, log: log}
}

// GetInfo implements v1.RegistrationServer. The version is that of the CSI API's major, as the kubelet compares it.
func (s *Server) GetInfo(context.Context, *v1.InfoRequest) (*v1.PluginInfo, error) {
	return &v1.PluginInfo{Type: v1.CSIPlugin, Name: s.name, Endpoint: s.endpoint, SupportedVersions: []string{"1.0.0"}}, nil
}

// NotifyRegistrationStatus implements v1.RegistrationServer. The kubelet tries again by itself when the socket is made
// anew, so a refusal is an operator's business.
func (s *Server) NotifyRegistrationStatus(_ context.Context, r *v1.RegistrationStatus) (*v1.RegistrationStatusResponse, error) {
	if r.GetPluginRegistered() {
		s.log.Info("registered with the kubelet", "driver", s.name)
	} else {
		s.log.Error("the kubelet refuses the driver", "driver", s.name, "error", r.GetError())
	}
	return &v1.RegistrationStatusResponse{}, nil
}

// Run serves in the directory until ctx ends.
func (s *Server) Run(ctx context.Context, dir string) error {
	l, err := rpc.Listen(dir + "/" + s.name + "-reg.sock")
	if err != nil {
		return err
	}
	g := grpc.NewServer()
	v1.RegisterRegistrationServer(g, s)
	stop := context.AfterFunc(ctx, g.Stop)
	defer stop()
	if err := g.Serve(l); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}
