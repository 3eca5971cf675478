package harness

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Lab is one set of directories in which a runtime lives with all it needs. Two labs do not meet.
type Lab struct {
	Name string // [a-z0-9]+, part of every path, cgroup and device name
	Bin  string // Berth's programs and testbox
	Tool string // upstream programs: kubelet, containerd, runc, CNI plugins
	Dir  string // what may be large: images, kubelet
	Run  string // sockets
	Pods string // address range of pods
	Own  string // cgroup of Berth's shims; NewLab's is /berth-NAME
}

// NewLab names the directories of a lab: /var/lib/berth-NAME and /run/berth-NAME.
func NewLab(name, bin, tool string) *Lab {
	return &Lab{Name: name, Bin: bin, Tool: tool, Dir: "/var/lib/berth-" + name, Run: "/run/berth-" + name, Pods: "10.88.0.0/16", Own: "/berth-" + name}
}

// Socket is the CRI socket of the lab's Berth.
func (l *Lab) Socket() string { return filepath.Join(l.Run, "cri.sock") }

// Hosts is the lab's hosts.toml tree.
func (l *Lab) Hosts() string { return filepath.Join(l.Dir, "hosts") }

// CDI is where the lab's device plugins describe devices.
func (l *Lab) CDI() string { return filepath.Join(l.Run, "cdi") }

// Logs is where processes log.
func (l *Lab) Logs() string { return filepath.Join(l.Run, "logs") }

// StartRegistry serves the test images.
func (l *Lab) StartRegistry(ctx context.Context) (*Process, error) {
	ready := filepath.Join(l.Run, "registry.ready")
	if err := errors.Join(os.MkdirAll(l.Run, 0o711), os.RemoveAll(ready)); err != nil {
		return nil, err
	}
	p, err := Start(l.Logs(), "registry", nil, filepath.Join(l.Bin, "registry"), "--testbox", filepath.Join(l.Bin, "testbox"), "--sh", filepath.Join(l.Tool, "busybox-sh"), "--hosts", l.Hosts(), "--ready", ready)
	if err != nil {
		return nil, err
	}
	return p, Until(ctx, 20*time.Millisecond, p, func() error { _, err := os.Stat(ready); return err })
}

const criConfig = `root = %q
state = %q
socket = %q
debug_socket = %q
log_level = %q
cdi_dirs = [%q]

[shim]
binary = %q

[cgroup]
own = %q

[image]
hosts_dir = %q
preload_dir = %q

[network]
conf_dir = %q
bin_dirs = [%q, %q]
cache_dir = %q
%s`

// Conflist is Berth's own network.
func (l *Lab) Conflist() string {
	return fmt.Sprintf(`{
  "cniVersion": "1.1.0",
  "name": "berth-%s",
  "plugins": [
    {
      "type": "berth",
      "ranges": [{"subnet": %q}],
      "stateDir": %q,
      "capabilities": {"portMappings": true, "bandwidth": true, "dns": true}
    }
  ]
}
`, l.Name, l.Pods, filepath.Join(l.Run, "cni"))
}

// Options change how a lab's Berth is started.
type Options struct {
	LogLevel string   // default info
	Conflist string   // default Berth's own network
	Netd     bool     // a berth-netd writes the CNI configuration, and attaches pods
	More     string   // further TOML
	Env      []string // further environment
	Plugins  string   // directory of containerd's CNI plugins; default the upstream ones
}

// WriteConfig writes berth-cri's configuration and the CNI configuration, and returns the former's path.
func (l *Lab) WriteConfig(o Options) (string, error) {
	if o.LogLevel == "" {
		o.LogLevel = "info"
	}
	if o.Conflist == "" {
		o.Conflist = l.Conflist()
	}
	net := filepath.Join(l.Run, "net.d")
	if err := errors.Join(os.MkdirAll(l.Dir, 0o711), os.MkdirAll(net, 0o755)); err != nil {
		return "", err
	}
	if !o.Netd {
		if err := os.WriteFile(filepath.Join(net, "10-berth.conflist"), []byte(o.Conflist), 0o644); err != nil {
			return "", err
		}
	}
	conf := filepath.Join(l.Run, "berth.toml")
	text := fmt.Sprintf(criConfig, filepath.Join(l.Dir, "berth"), filepath.Join(l.Run, "berth"), l.Socket(), filepath.Join(l.Run, "debug.sock"), o.LogLevel, l.CDI(),
		filepath.Join(l.Bin, "berth-shim"), l.Own, l.Hosts(), filepath.Join(l.Dir, "preload"), net, filepath.Join(l.Bin, "cni"), l.Tool, filepath.Join(l.Run, "cni-cache"), o.More)
	return conf, os.WriteFile(conf, []byte(text), 0o644)
}

// StartCRI runs berth-cri and returns when it answers.
func (l *Lab) StartCRI(ctx context.Context, o Options) (*Process, error) {
	conf, err := l.WriteConfig(o)
	if err != nil {
		return nil, err
	}
	if o.Netd {
		if _, err := l.StartNetd(ctx); err != nil {
			return nil, err
		}
	}
	return l.RestartCRI(ctx, conf, o.Env)
}

// RestartCRI runs berth-cri with a configuration that is there.
func (l *Lab) RestartCRI(ctx context.Context, conf string, env []string) (*Process, error) {
	p, err := Start(l.Logs(), "berth-cri", env, filepath.Join(l.Bin, "berth-cri"), "--config", conf)
	if err != nil {
		return nil, err
	}
	return p, l.AwaitCRI(ctx, p)
}

// AwaitCRI returns when the lab's Berth answers.
func (l *Lab) AwaitCRI(ctx context.Context, p *Process) error {
	return AwaitVersion(ctx, l.Socket(), p)
}

// AwaitVersion returns when the CRI at socket answers Version, or with an error when p has ended.
func AwaitVersion(ctx context.Context, socket string, p *Process) error {
	c, err := Dial(socket)
	if err != nil {
		return err
	}
	defer c.Close()
	return Until(ctx, 5*time.Millisecond, p, func() error {
		call, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		_, err := c.Runtime.Version(call, &cri.VersionRequest{})
		return err
	})
}

// Client speaks the CRI.
type Client struct {
	conn    *grpc.ClientConn
	Runtime cri.RuntimeServiceClient
	Images  cri.ImageServiceClient
}

// Dial makes a client of a CRI socket; it connects with its first call.
func Dial(socket string) (*Client, error) {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)), grpc.WithConnectParams(quick()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		}))
	if err != nil {
		return nil, err
	}
	return &Client{conn: conn, Runtime: cri.NewRuntimeServiceClient(conn), Images: cri.NewImageServiceClient(conn)}, nil
}

// Close closes the connection.
func (c *Client) Close() { _ = c.conn.Close() }

// RemoveAll stops and removes every pod of a runtime.
func (c *Client) RemoveAll(ctx context.Context) error {
	list, err := c.Runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	var all []error
	for _, p := range list.GetItems() {
		_, serr := c.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.GetId()})
		_, rerr := c.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.GetId()})
		all = append(all, serr, rerr)
	}
	return errors.Join(all...)
}
