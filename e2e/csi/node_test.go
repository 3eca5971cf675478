// Package csi tests berth-csi in a whole cluster: a real control plane, a real kubelet on berth-cri, and the manifests
// of deploy/csi. One lab serves the package, in a network namespace of its own; at the end nothing may be left.
package csi

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	authv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-project/berth/e2e/harness"
)

const busybox = "registry.k8s.io/e2e-test-images/busybox:1.29-2"

// node is what the tests share.
var node struct {
	lab     *harness.Lab
	second  *harness.Lab // of a second node, which TestMoved alone has
	cluster *harness.Cluster
	csi     *harness.Process
	conf    string
}

func TestMain(m *testing.M) {
	flag.Parse()
	lab, err := harness.FromEnv("storage")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	lab.Pods = "10.92.0.0/16"
	node.second = harness.NewLab("othernode", lab.Bin, lab.Tool)
	os.Exit(harness.Isolate(lab, func() int { return inLab(m, lab) }))
}

func inLab(m *testing.M, lab *harness.Lab) int {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	if err := errors.Join(endSecond(ctx), unmountPools(lab), harness.Stop(ctx, lab)); err != nil { // what an interrupted run left
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
	if err := errors.Join(endSecond(end), unmountPools(lab), harness.Stop(end, lab)); err != nil {
		fmt.Fprintln(os.Stderr, "stop:", err)
		code = 1
	}
	return code
}

func start(ctx context.Context, lab *harness.Lab) error {
	node.lab = lab
	if _, err := lab.StartRegistry(ctx); err != nil {
		return err
	}
	if _, err := lab.StartCRI(ctx, harness.Options{}); err != nil {
		return err
	}
	var err error
	if node.cluster, err = lab.StartCluster(ctx, lab.Node(), node.second.Node()); err != nil {
		return err
	}
	if err := deploy(ctx); err != nil {
		return err
	}
	admin, err := node.cluster.Kubeconfig("snapshots", node.cluster.Token("admin"))
	if err != nil {
		return err
	}
	if _, err := harness.Start(lab.Logs(), "snapshot-controller", nil, filepath.Join(lab.Tool, "snapshot-controller"), "--kubeconfig", admin,
		"--kube-api-qps", "100", "--kube-api-burst", "200", "--feature-gates", "CSIVolumeGroupSnapshot=true"); err != nil {
		return err
	}
	if _, err := node.cluster.StartNode(ctx, lab.Socket(), 11450); err != nil {
		return err
	}
	if err := makePools(lab); err != nil {
		return err
	}
	return startDriver(ctx, lab)
}

// pools are file systems in loop files.
func pools() []string { return []string{"btrfs", "xfs"} }

func makePools(lab *harness.Lab) error {
	for fs, size := range map[string]int64{"btrfs": 5 << 30, "xfs": 6 << 30} {
		if err := makePool(lab, fs, size); err != nil {
			return err
		}
	}
	return nil
}

func makePool(lab *harness.Lab, fs string, size int64) error {
	dir := filepath.Join(lab.Dir, "pool-"+fs)
	image := dir + ".img"
	f, err := os.Create(image)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(size), f.Close(), os.MkdirAll(dir, 0o700)); err != nil {
		return err
	}
	for _, args := range [][]string{{"mkfs." + fs, "-q", image}, {"mount", "-o", "loop", image, dir}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%v: %w: %s", args, err, out)
		}
	}
	return nil
}

func unmountPools(lab *harness.Lab) error {
	_ = harness.StopByPidFile(filepath.Join(lab.Logs(), "kubelet.pid")) // harness.Stop says what is wrong
	var all []error
	for _, name := range append([]string{"berth-csi", "berth-csi-gone", "snapshot-controller"}, sidecars()...) {
		all = append(all, harness.StopByPidFile(filepath.Join(lab.Logs(), name+".pid")))
	}
	for _, fs := range pools() {
		dir := filepath.Join(lab.Dir, "pool-"+fs)
		if err := exec.Command("mountpoint", "-q", dir).Run(); err != nil {
			continue
		}
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			all = append(all, fmt.Errorf("umount %s: %w: %s", dir, err, out))
		}
	}
	return errors.Join(all...)
}

// deploy applies upstream's definitions of the snapshot API, the manifests of deploy/csi, and a class for each pool.
func deploy(ctx context.Context) error {
	crds, err := filepath.Glob(filepath.Join(node.lab.Tool, "crds", "*.yaml")) // upstream's, as an operator installs them
	if err != nil || len(crds) == 0 {
		return fmt.Errorf("no definitions of the snapshot API: run `make tools`: %w", err)
	}
	for _, name := range append(crds, "../../deploy/csi/driver.yaml", "../../deploy/csi/rbac.yaml", "../../deploy/csi/snapshotclass.yaml") {
		if err := applyFile(ctx, name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	class, err := os.ReadFile("../../deploy/csi/storageclass.yaml")
	if err != nil {
		return err
	}
	for name, more := range map[string]string{"btrfs": "pool: btrfs", "xfs": "pool: xfs, csi.storage.k8s.io/fstype: xfs", "ext4": "pool: xfs, csi.storage.k8s.io/fstype: ext4"} {
		text := strings.NewReplacer("berth-local", name, "pool: local", more).Replace(string(class))
		if err := apply(ctx, text); err != nil {
			return fmt.Errorf("class %s: %w", name, err)
		}
	}
	return nil
}

const csiConfig = `root = %q
state = %q
node = %q
socket = %q
registration_dir = %q
kubelet_dir = %q
debug_socket = %q
log_level = "debug"

[cluster]
enabled = true
kubeconfig = %q

[pools.btrfs]
backend = "btrfs"
path = %q
ephemeral = true

[pools.xfs]
backend = "loop"
path = %q
keep_free = "64Mi"
`

func socket() string { return socketOf(node.lab) }

func socketOf(lab *harness.Lab) string { return lab.KubeletDir() + "/plugins/csi.berth.dev/csi.sock" }

// startDriver runs berth-csi and returns when node and capacity say so.
func startDriver(ctx context.Context, lab *harness.Lab) (err error) {
	if node.conf, err = configure(ctx, lab); err != nil {
		return err
	}
	node.csi, err = runDriver(ctx, lab, node.conf)
	return err
}

// configure writes a node's configuration of berth-csi, which has the rights of its service account.
func configure(ctx context.Context, lab *harness.Lab) (conf string, err error) {
	hour := int64(3600 * 4)
	token, err := node.cluster.Client.CoreV1().ServiceAccounts("kube-system").CreateToken(ctx, "berth-csi",
		&authv1.TokenRequest{Spec: authv1.TokenRequestSpec{ExpirationSeconds: &hour}}, metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	kubeconfig, err := node.cluster.Kubeconfig("berth-csi", token.Status.Token)
	if err != nil {
		return "", err
	}
	kubelet := lab.KubeletDir()
	text := fmt.Sprintf(csiConfig, lab.Dir+"/csi", lab.Run+"/csi", lab.Node(), socketOf(lab), kubelet+"/plugins_registry",
		kubelet, lab.Run+"/csi-debug.sock", kubeconfig, lab.Dir+"/pool-btrfs/p", lab.Dir+"/pool-xfs/p")
	conf = lab.Run + "/csi.toml"
	return conf, errors.Join(os.MkdirAll(kubelet+"/plugins/csi.berth.dev", 0o750), os.WriteFile(conf, []byte(text), 0o600))
}

func runDriver(ctx context.Context, lab *harness.Lab, conf string) (*harness.Process, error) {
	p, err := harness.Start(lab.Logs(), "berth-csi", nil, filepath.Join(lab.Bin, "berth-csi"), "--config", conf)
	if err != nil {
		return nil, err
	}
	return p, harness.Until(ctx, 50*time.Millisecond, p, func() error {
		n, err := node.cluster.Client.StorageV1().CSINodes().Get(ctx, lab.Node(), metav1.GetOptions{})
		if err != nil {
			return err
		}
		caps, err := node.cluster.Client.StorageV1().CSIStorageCapacities("kube-system").List(ctx, metav1.ListOptions{LabelSelector: "berth.dev/node=" + lab.Node()})
		if err != nil || len(n.Spec.Drivers) != 1 || len(caps.Items) != 3 {
			return fmt.Errorf("%d drivers on the node, %d capacities, %w", len(n.Spec.Drivers), len(caps.Items), err)
		}
		return nil
	})
}
