package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const nodeConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: 127.0.0.1
port: %d
readOnlyPort: 0
healthzPort: 0
podLogsDir: %s
containerRuntimeEndpoint: unix://%s
cgroupDriver: cgroupfs
cgroupRoot: %s
failCgroupV1: false
failSwapOn: false
enforceNodeAllocatable: []
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: %s}}
authorization: {mode: AlwaysAllow}
syncFrequency: 5s
volumeStatsAggPeriod: 10s
nodeStatusUpdateFrequency: 2s
seccompDefault: true
clusterDomain: lab
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
evictionHard: {memory.available: 10Mi, nodefs.available: 1Mi, imagefs.available: 1Mi, nodefs.inodesFree: 0.1%%, imagefs.inodesFree: 0.1%%}
`

// KubeletDir is the root directory of the lab's kubelet.
func (l *Lab) KubeletDir() string { return filepath.Join(l.Dir, "kubelet") }

// StartNode runs a kubelet that joins the cluster under the lab's node name, on a CRI socket, and returns when the node
// is ready. port must be free on loopback.
func (c *Cluster) StartNode(ctx context.Context, socket string, port int) (*Process, error) {
	return c.Join(ctx, c.Lab, socket, port)
}

// Join is StartNode for another lab, whose node name the cluster was started with: a second kubelet on the same kernel,
// with directories, a runtime and cgroups of its own.
func (c *Cluster) Join(ctx context.Context, l *Lab, socket string, port int) (*Process, error) {
	if err := errors.Join(os.MkdirAll(l.KubeletDir(), 0o755), MakeCgroup(l.Cgroup())); err != nil {
		return nil, err
	}
	conf := filepath.Join(l.Run, "node.yaml")
	text := fmt.Sprintf(nodeConfig, port, l.PodLogs(), socket, l.Cgroup(), filepath.Join(c.dir, "ca.crt"))
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		return nil, err
	}
	program, err := c.program("kubelet")
	if err != nil {
		return nil, err
	}
	p, err := Start(l.Logs(), "kubelet", nil, program, "--config", conf, "--root-dir", l.KubeletDir(),
		"--cert-dir", filepath.Join(l.KubeletDir(), "pki"), "--hostname-override", l.Node(), "--kubeconfig", c.kubeconfig("system:node:"+l.Node()),
		"--node-ip", "192.0.2.1", "--v", "2")
	if err != nil {
		return nil, err
	}
	return p, Until(ctx, 100*time.Millisecond, p, func() error {
		n, err := c.Client.CoreV1().Nodes().Get(ctx, l.Node(), metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, cond := range n.Status.Conditions {
			if cond.Type == corev1.NodeReady && cond.Status == corev1.ConditionTrue {
				return nil
			}
		}
		return fmt.Errorf("node %s is not ready: %v", n.Name, n.Status.Conditions)
	})
}
