package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

const fabricFile = `pools:
- {name: pods, cidrs: [%s], mode: none, mtu: 1500}
nodes:
- {name: %s, addresses: [192.0.2.1], podCIDRs: [%s]}
`

const netdFile = `node: %s
fabric: %q
state: %q
root: %q
cni:
  dir: %q
  network: berth-%s
  stateDir: %q
`

// NetdCommand writes the configuration of a berth-netd that serves the lab's one node: it writes the CNI configuration and
// attaches pods for berth-cri, and touches no route, since there is no other node. It returns how it is started.
func (l *Lab) NetdCommand() ([]string, error) {
	conf, fabric, net := filepath.Join(l.Run, "netd.yaml"), filepath.Join(l.Run, "fabric.yaml"), filepath.Join(l.Run, "net.d")
	return []string{filepath.Join(l.Bin, "berth-netd"), "--config", conf, "serve"}, errors.Join(
		os.MkdirAll(net, 0o755),
		os.WriteFile(fabric, fmt.Appendf(nil, fabricFile, l.Pods, l.Name, l.Pods), 0o600),
		os.WriteFile(conf, fmt.Appendf(nil, netdFile, l.Name, fabric, filepath.Join(l.Run, "netd"), filepath.Join(l.Run, "netd-root"), net, l.Name, filepath.Join(l.Run, "cni")), 0o600),
	)
}

// StartNetd runs the lab's berth-netd and returns when pods can be attached. It is to be started before berth-cri.
func (l *Lab) StartNetd(ctx context.Context) (*Process, error) {
	argv, err := l.NetdCommand()
	if err != nil {
		return nil, err
	}
	p, err := Start(l.Logs(), "berth-netd", nil, argv...)
	if err != nil {
		return nil, err
	}
	return p, l.AwaitNetd(ctx, p)
}

// AwaitNetd returns when the agent has written the CNI configuration.
func (l *Lab) AwaitNetd(ctx context.Context, p *Process) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	return Until(ctx, 5*time.Millisecond, p, func() error {
		_, err := os.Stat(filepath.Join(l.Run, "net.d", "10-berth.conflist"))
		return err
	})
}
