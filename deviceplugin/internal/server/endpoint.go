package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	dp "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
	reg "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/berth-project/berth/internal/failpoint"
	"github.com/berth-project/berth/proto/errs"
	"github.com/berth-project/berth/proto/rpc"
)

var (
	failAfterListen    = failpoint.New("gpu.register.after_listen")
	failBeforeRegister = failpoint.New("gpu.register.before")
	failAfterRegister  = failpoint.New("gpu.register.after")
)

// endpoint is one socket on which one resource is served.
type endpoint struct {
	path   string
	server *grpc.Server
	done   chan struct{}
}

// serve listens at path with mode 0600 and answers at once: the kubelet dials back inside Register.
func serve(path string, edge *rpc.Edge, register func(*grpc.Server)) (*endpoint, error) {
	l, err := rpc.Listen(path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	e := &endpoint{path: path, server: grpc.NewServer(edge.Options()...), done: make(chan struct{})}
	register(e.server)
	go func() { // waited for by close
		defer close(e.done)
		_ = e.server.Serve(l) // ends with close alone; a broken listener shows as a socket that is gone
	}()
	return e, failAfterListen.Hit()
}

// there says whether the socket's name still leads to a socket: the kubelet removes those in its directory.
func (e *endpoint) there() bool {
	fi, err := os.Lstat(e.path)
	return err == nil && fi.Mode().Type() == os.ModeSocket
}

// close ends the streams, waits, and removes the socket's name.
func (e *endpoint) close() error {
	e.server.Stop()
	<-e.done
	if err := os.Remove(e.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// file makes a resource's name a part of a file's.
func file(resource string) string { return strings.NewReplacer("/", "_").Replace(resource) }

// registry answers the kubelet's plugin watcher.
type registry struct {
	reg.UnimplementedRegistrationServer
	resource, endpoint string
	told               func(err error)
}

// GetInfo implements reg.RegistrationServer.
func (r *registry) GetInfo(context.Context, *reg.InfoRequest) (*reg.PluginInfo, error) {
	return &reg.PluginInfo{Type: reg.DevicePlugin, Name: r.resource, Endpoint: r.endpoint, SupportedVersions: []string{dp.Version}}, nil
}

// NotifyRegistrationStatus implements reg.RegistrationServer.
func (r *registry) NotifyRegistrationStatus(_ context.Context, s *reg.RegistrationStatus) (*reg.RegistrationStatusResponse, error) {
	var err error
	if !s.GetPluginRegistered() {
		err = errs.FailedPrecondition.Errorf("%s: the kubelet refuses the plugin: %s", r.resource, s.GetError())
	}
	r.told(err)
	return &reg.RegistrationStatusResponse{}, nil
}

// kubeletSocket is the legacy registration's, and how one kubelet's is told from the next one's.
type kubeletSocket struct{ path, stamp string }

// look reads the stamp: inode and change time; "" while there is none.
func look(dir string) kubeletSocket {
	k := kubeletSocket{path: filepath.Join(dir, "kubelet.sock")}
	fi, err := os.Lstat(k.path)
	if err != nil || fi.Mode().Type() != os.ModeSocket {
		return k
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		k.stamp = fmt.Sprint(st.Ino, st.Ctim)
	}
	return k
}

// trusted refuses a directory that others than root could put a socket into.
func trusted(dir string) error {
	fi, err := os.Stat(dir)
	if err != nil {
		return err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok || st.Uid != 0 || fi.Mode().Perm()&0o022 != 0 {
		return errs.FailedPrecondition.Errorf("%s is not root's alone (mode %v): whoever may write there could pass for the kubelet", dir, fi.Mode())
	}
	return nil
}

// registerLegacy calls Register on the kubelet's socket.
func registerLegacy(ctx context.Context, kubelet, resource, endpoint string) error {
	if err := failBeforeRegister.Hit(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	conn, err := grpc.NewClient("unix://"+kubelet, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", kubelet)
		}))
	if err != nil {
		return err
	}
	_, err = dp.NewRegistrationClient(conn).Register(ctx, &dp.RegisterRequest{
		Version: dp.Version, Endpoint: filepath.Base(endpoint), ResourceName: resource, Options: options(),
	})
	if err != nil {
		return errors.Join(fmt.Errorf("%s: register with %s: %w", resource, kubelet, rpc.FromStatus(err)), conn.Close())
	}
	return errors.Join(conn.Close(), failAfterRegister.Hit())
}

// once keeps the log free of the same error every 200 ms.
type once struct {
	mu   sync.Mutex
	last string
}

func (o *once) news(err error) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	text := ""
	if err != nil {
		text = err.Error()
	}
	fresh := text != o.last
	o.last = text
	return fresh && err != nil
}
