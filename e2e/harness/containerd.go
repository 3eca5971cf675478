package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// containerdConfig is a containerd 2.4 as lean as its operator could make it for Kubernetes: what a pod does not use
// is disabled, everything else is its default. restrict_oom_score_adj is for machines without CAP_SYS_RESOURCE.
const containerdConfig = `version = 4
root = %[1]q
state = %[2]q
disabled_plugins = [%[3]s]

[debug]
  level = "warn"

[plugins.'io.containerd.server.v1.grpc']
  address = %[4]q
[plugins.'io.containerd.server.v1.ttrpc']
  address = %[5]q
[plugins.'io.containerd.internal.v1.opt']
  path = %[6]q

[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "registry.k8s.io/pause:3.10.1"
[plugins.'io.containerd.cri.v1.images'.registry]
  config_path = %[7]q

[plugins.'io.containerd.cri.v1.runtime']
  disable_apparmor = true
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  cdi_spec_dirs = [%[11]q]
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = [%[8]q]
  conf_dir = %[9]q
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
  BinaryName = %[10]q
`

// containerdUnused are the plugins of containerd that no pod of a kubelet needs.
var containerdUnused = []string{
	"io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.erofs",
	"io.containerd.snapshotter.v1.native", "io.containerd.snapshotter.v1.zfs", "io.containerd.differ.v1.erofs",
	"io.containerd.mount-handler.v1.erofs", "io.containerd.nri.v1.nri", "io.containerd.tracing.processor.v1.otlp",
	"io.containerd.internal.v1.tracing", "io.containerd.image-verifier.v1.bindir", "io.containerd.monitor.container.v1.restart",
}

// ContainerdSocket is the CRI socket of the lab's containerd.
func (l *Lab) ContainerdSocket() string { return filepath.Join(l.Run, "containerd.sock") }

// UpstreamConflist is the network of a stock node: bridge with masquerading, host-local and portmap, each executed.
// Bridge and address range are the lab's.
func (l *Lab) UpstreamConflist() string {
	return fmt.Sprintf(`{
  "cniVersion": "1.0.0",
  "name": "upstream-%[1]s",
  "plugins": [
    {
      "type": "bridge", "bridge": %[4]q, "isGateway": true, "isDefaultGateway": true, "ipMasq": true, "hairpinMode": true,
      "ipam": {"type": "host-local", "ranges": [[{"subnet": %[2]q}]], "dataDir": %[3]q}
    },
    {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}
  ]
}
`, l.Name, l.Pods, filepath.Join(l.Run, "ipam"), l.bridge())
}

// bridge is the peer's; a link's name has 15 bytes.
func (l *Lab) bridge() string { return "b-" + l.Name[max(0, len(l.Name)-13):] }

// WriteContainerdConfig writes containerd's configuration and its network's, and returns the former's path.
func (l *Lab) WriteContainerdConfig(o Options) (string, error) {
	if o.Conflist == "" {
		o.Conflist = l.UpstreamConflist()
	}
	if o.Plugins == "" {
		o.Plugins = l.Tool
	}
	net := filepath.Join(l.Run, "net.d")
	if err := errors.Join(os.MkdirAll(l.Dir, 0o711), os.MkdirAll(net, 0o755)); err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(net, "10-upstream.conflist"), []byte(o.Conflist), 0o644); err != nil {
		return "", err
	}
	text := fmt.Sprintf(containerdConfig, filepath.Join(l.Dir, "containerd"), filepath.Join(l.Run, "containerd"),
		`"`+strings.Join(containerdUnused, `", "`)+`"`, l.ContainerdSocket(), l.ContainerdSocket()+".ttrpc",
		filepath.Join(l.Dir, "opt"), l.Hosts(), o.Plugins, net, filepath.Join(l.Tool, "runc"), l.CDI()) + o.More
	conf := filepath.Join(l.Run, "containerd.toml")
	return conf, os.WriteFile(conf, []byte(text), 0o644)
}

// ContainerdEnv is what containerd needs in its environment: its shim is found by PATH.
func (l *Lab) ContainerdEnv() []string { return []string{"PATH=" + l.Tool + ":" + os.Getenv("PATH")} }

// StartContainerd runs containerd with runc and returns when its CRI answers.
func (l *Lab) StartContainerd(ctx context.Context, o Options) (*Process, error) {
	conf, err := l.WriteContainerdConfig(o)
	if err != nil {
		return nil, err
	}
	p, err := Start(l.Logs(), "containerd", append(l.ContainerdEnv(), o.Env...), filepath.Join(l.Tool, "containerd"), "--config", conf)
	if err != nil {
		return nil, err
	}
	return p, AwaitVersion(ctx, l.ContainerdSocket(), p)
}
