package harness

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: 127.0.0.1
port: %d
readOnlyPort: %d
healthzPort: 0
staticPodPath: %s
podLogsDir: %s
containerRuntimeEndpoint: unix://%s
cgroupDriver: %s
cgroupRoot: %s
failCgroupV1: false
failSwapOn: false
enforceNodeAllocatable: []
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
fileCheckFrequency: 1s
syncFrequency: 10s
containerLogMaxSize: 10Ki
containerLogMaxFiles: 3
containerLogMonitorInterval: 3s
seccompDefault: true
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
evictionHard: {memory.available: 10Mi, nodefs.available: 1Mi, imagefs.available: 1Mi, nodefs.inodesFree: 0.1%%, imagefs.inodesFree: 0.1%%}
`

// Kubelet is a real kubelet without an API server: it runs the pods whose manifests are in a directory.
type Kubelet struct {
	*Process
	Manifests string
	Port      int // authenticated API, anonymous allowed
	ReadOnly  int
}

// StartKubelet runs the kubelet against a CRI socket. port and port+1 must be free on loopback.
func (l *Lab) StartKubelet(ctx context.Context, socket string, port int) (*Kubelet, error) {
	dir := filepath.Join(l.Dir, "kubelet")
	k := &Kubelet{Manifests: filepath.Join(l.Dir, "manifests"), Port: port, ReadOnly: port + 1}
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.MkdirAll(k.Manifests, 0o755), l.makeKubeletGroup()); err != nil {
		return nil, err
	}
	conf := filepath.Join(l.Run, "kubelet.yaml")
	text := fmt.Sprintf(kubeletConfig, k.Port, k.ReadOnly, k.Manifests, l.PodLogs(), socket, l.Driver, l.kubeletRoot())
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		return nil, err
	}
	var err error
	k.Process, err = Start(l.Logs(), "kubelet", nil, filepath.Join(l.Tool, "kubelet"), "--config", conf, "--root-dir", dir,
		"--cert-dir", filepath.Join(dir, "pki"), "--hostname-override", l.Node(), "--v", "2")
	if err != nil {
		return nil, err
	}
	return k, Until(ctx, 100*time.Millisecond, k.Process, func() error { _, err := k.Pods(); return err })
}

// Node is the name of the lab's kubelet.
func (l *Lab) Node() string { return "berth-" + l.Name }

// Cgroup is below which the lab's kubelet makes its pods' groups.
func (l *Lab) Cgroup() string { return "/berth-" + l.Name + "-kubelet" }

// PodLogs is where the lab's kubelet has the pods' logs.
func (l *Lab) PodLogs() string { return filepath.Join(l.Dir, "pod-logs") }

// Pod is the part of a v1.Pod that tests look at.
type Pod struct {
	Metadata struct {
		Name, Namespace, UID string
	}
	Status PodStatus
}

// PodStatus is the part of a v1.PodStatus that tests look at.
type PodStatus struct {
	Phase                 string
	PodIP                 string
	Conditions            []struct{ Type, Status string }
	ContainerStatuses     []ContainerStatus
	InitContainerStatuses []ContainerStatus
}

// ContainerStatus is the part of a v1.ContainerStatus that tests look at.
type ContainerStatus struct {
	Name, ContainerID string
	Ready             bool
	RestartCount      int
	State, LastState  ContainerState
}

// ContainerState is a v1.ContainerState.
type ContainerState struct {
	Waiting    *struct{ Reason, Message string }
	Running    *struct{ StartedAt time.Time }
	Terminated *struct {
		ExitCode              int
		Reason, Message       string
		StartedAt, FinishedAt time.Time
	}
}

// Ready says whether the pod's Ready condition is true.
func (p *Pod) Ready() bool {
	for _, c := range p.Status.Conditions {
		if c.Type == "Ready" {
			return c.Status == "True"
		}
	}
	return false
}

// Pods asks the kubelet for its pods.
func (k *Kubelet) Pods() ([]Pod, error) {
	b, err := k.Get(fmt.Sprintf("http://127.0.0.1:%d/pods", k.ReadOnly))
	if err != nil {
		return nil, err
	}
	var list struct{ Items []Pod }
	return list.Items, json.Unmarshal(b, &list)
}

// Pod finds a pod by the name in its manifest (the kubelet appends the node's).
func (k *Kubelet) Pod(name string) (*Pod, error) {
	pods, err := k.Pods()
	if err != nil {
		return nil, err
	}
	for i := range pods {
		if strings.HasPrefix(pods[i].Metadata.Name, name+"-berth-") {
			return &pods[i], nil
		}
	}
	return nil, fmt.Errorf("the kubelet has no pod %s", name)
}

// Get fetches a URL of a server on this machine.
func (k *Kubelet) Get(url string) ([]byte, error) { return Fetch(url) }

// Fetch fetches a URL within five seconds.
func Fetch(url string) ([]byte, error) {
	c := http.Client{Timeout: 5 * time.Second}
	resp, err := c.Get(url)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	b, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", url, resp.Status)
	}
	return b, err
}

// Apply writes a manifest, by rename, so that the kubelet never reads half of it.
func (k *Kubelet) Apply(name, manifest string) error {
	tmp := filepath.Join(filepath.Dir(k.Manifests), "."+name)
	if err := os.WriteFile(tmp, []byte(manifest), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(k.Manifests, name+".yaml"))
}

// Delete removes a manifest.
func (k *Kubelet) Delete(name string) error {
	return os.Remove(filepath.Join(k.Manifests, name+".yaml"))
}

// Await waits until the pod is as ok wants it.
func (k *Kubelet) Await(ctx context.Context, name string, ok func(*Pod) bool) (*Pod, error) {
	var last *Pod
	err := Until(ctx, 20*time.Millisecond, k.Process, func() error {
		p, err := k.Pod(name)
		if err != nil {
			return err
		}
		if last = p; !ok(p) {
			b, _ := json.Marshal(p.Status)
			return fmt.Errorf("pod %s is %s", name, b)
		}
		return nil
	})
	return last, err
}
