// Package gpucluster tests berth-gpu and berth-gpu-dra in a whole cluster: a real control plane with its scheduler, a
// real kubelet on berth-cri, the manifests of deploy/gpu, and a profile of eight H100 in place of GPUs. The kubelet alone,
// in more detail, is package gpu's.
package gpucluster

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	authv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-project/berth/e2e/harness"
)

const (
	busybox = "registry.k8s.io/e2e-test-images/busybox:1.29-2"
	gpus    = 8
)

// node is what the tests share.
var node struct {
	lab     *harness.Lab
	cluster *harness.Cluster
	runtime *harness.Client
	gpu     *harness.Process
	dra     *harness.Process
}

func TestMain(m *testing.M) {
	flag.Parse()
	lab, err := harness.FromEnv("gpus")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	lab.Pods = "10.95.0.0/16"
	os.Exit(harness.Isolate(lab, func() int { return inLab(m, lab) }))
}

func inLab(m *testing.M, lab *harness.Lab) int {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	if err := stop(ctx, lab); err != nil { // what an interrupted run left
		fmt.Fprintln(os.Stderr, "leftovers:", err)
		return 1
	}
	code := 1
	if err := start(ctx, lab); err != nil {
		fmt.Fprintln(os.Stderr, "start:", err)
	} else {
		code = m.Run()
	}
	if code != 0 || os.Getenv("BERTH_KEEP") != "" {
		lab.KeepLogs(os.Stderr)
	}
	end, cancelEnd := context.WithTimeout(context.Background(), time.Minute)
	defer cancelEnd()
	if err := stop(end, lab); err != nil {
		fmt.Fprintln(os.Stderr, "stop:", err)
		code = 1
	}
	return code
}

// stop ends the kubelet first, then the drivers: it must not see them go.
func stop(ctx context.Context, lab *harness.Lab) error {
	var all []error
	for _, name := range []string{"kubelet", "berth-gpu-dra", "berth-gpu"} {
		all = append(all, harness.StopByPidFile(filepath.Join(lab.Logs(), name+".pid")))
	}
	return errors.Join(append(all, harness.Stop(ctx, lab))...)
}

func start(ctx context.Context, lab *harness.Lab) error {
	node.lab = lab
	// the device manager's directory is fixed: this lab has its own, in its mount namespace
	if err := errors.Join(os.MkdirAll("/var/lib/kubelet", 0o755), unix.Mount("kubelet", "/var/lib/kubelet", "tmpfs", 0, "mode=755")); err != nil {
		return err
	}
	if _, err := lab.StartRegistry(ctx); err != nil {
		return err
	}
	if _, err := lab.StartCRI(ctx, harness.Options{}); err != nil {
		return err
	}
	var err error
	if node.runtime, err = harness.Dial(lab.Socket()); err != nil {
		return err
	}
	if node.cluster, err = lab.StartCluster(ctx, lab.Node()); err != nil {
		return err
	}
	for _, name := range []string{"dra.yaml", "cluster.yaml"} {
		b, err := os.ReadFile(filepath.Join("../../deploy/gpu", name))
		if err != nil {
			return err
		}
		if err := apply(ctx, string(b)); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if _, err := node.cluster.StartNode(ctx, lab.Socket(), 11460); err != nil {
		return err
	}
	b, err := os.ReadFile("../../deviceplugin/internal/discovery/fake/profiles/h100x8.yaml")
	if err != nil {
		return err
	}
	kubeconfig, err := account(ctx, "berth-gpu")
	if err := errors.Join(err, os.WriteFile(profile(), b, 0o600), startPlugin(kubeconfig)); err != nil {
		return err
	}
	return startDRA(ctx)
}

// profile is a file, so that tests change what the node has.
func profile() string { return filepath.Join(node.lab.Run, "profile.yaml") }

// account writes a kubeconfig of a service account of the manifests: its rights are theirs.
func account(ctx context.Context, name string) (string, error) {
	hour := int64(3600 * 4)
	token, err := node.cluster.Client.CoreV1().ServiceAccounts("kube-system").CreateToken(ctx, name,
		&authv1.TokenRequest{Spec: authv1.TokenRequestSpec{ExpirationSeconds: &hour}}, metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	return node.cluster.Kubeconfig(name, token.Status.Token)
}

const gpuConfig = `root = %q
state = %q
debug_socket = %q
[kubelet]
dir = %q
[driver]
dev_view = %q
[cdi]
dir = %q
[health]
poll_ms = 200
[cluster]
node = %q
kubeconfig = %q
override_label = "nvidia.com/device-plugin.config"
labels = true

[[overrides.shared.resources]]
name = "nvidia.com/gpu.shared"
sharing = { strategy = "time-slicing", replicas = 4 }
`

// startPlugin runs berth-gpu as somebody at the API server.
func startPlugin(kubeconfig string) error {
	lab := node.lab
	text := fmt.Sprintf(gpuConfig, filepath.Join(lab.Dir, "gpu"), filepath.Join(lab.Run, "gpu"), filepath.Join(lab.Run, "gpu/debug.sock"), lab.KubeletDir(),
		filepath.Join(lab.Run, "dev"), lab.CDI(), lab.Node(), kubeconfig)
	if err := os.WriteFile(config(), []byte(text), 0o600); err != nil {
		return err
	}
	var err error
	node.gpu, err = harness.Start(lab.Logs(), "berth-gpu", nil, filepath.Join(lab.Bin, "berth-gpu"), "--config", config(), "--fake", profile())
	return err
}

func config() string { return filepath.Join(node.lab.Run, "gpu.toml") }

// startDRA runs berth-gpu-dra as its service account, and waits for its slices.
func startDRA(ctx context.Context) error {
	lab := node.lab
	kubeconfig, err := account(ctx, "berth-gpu-dra")
	if err != nil {
		return err
	}
	node.dra, err = harness.Start(lab.Logs(), "berth-gpu-dra", nil, filepath.Join(lab.Bin, "berth-gpu-dra"), "--node", lab.Node(),
		"--kubeconfig", kubeconfig, "--socket", filepath.Join(lab.Run, "gpu/debug.sock"), "--kubelet", lab.KubeletDir())
	if err != nil {
		return err
	}
	return harness.Until(ctx, 100*time.Millisecond, node.dra, func() error { return offered(ctx, gpus) })
}
