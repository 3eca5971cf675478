package gpureal

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	dp "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"github.com/berth-project/berth/e2e/dpkubelet"
	"github.com/berth-project/berth/e2e/harness"
)

// node is berth-cri, berth-gpu, and the little of a kubelet that joins them.
type node struct {
	c       Config
	lab     *harness.Lab
	client  *harness.Client
	kubelet *dpkubelet.Kubelet
	gpu     *harness.Process
	plugin  *dpkubelet.Plugin
	cri     *harness.Process
	pod     string
	seq     int
}

const settings = `root = %q
state = %q
debug_socket = %q
discovery = "auto"
[kubelet]
dir = %q
device_plugins = %q
registration = "legacy"
[driver]
root = %q
dev_view = %q
[cdi]
dir = %q
%s`

// up makes the place of what follows, and what a plugin registers with. It needs no runtime.
func (n *node) up(ctx context.Context) error {
	n.lab = harness.NewLab("gpureal", n.c.Bin, n.c.Bin)
	if n.c.Tools != "" {
		n.lab = harness.NewLab("gpureal", n.c.Bin, n.c.Tools)
	}
	if err := errors.Join(harness.Stop(ctx, n.lab), os.MkdirAll(n.lab.Run, 0o711), os.MkdirAll(n.plugins(), 0o750)); err != nil {
		return err
	}
	var err error
	n.kubelet, err = dpkubelet.Start(n.plugins())
	return err
}

// runtime starts one, loads the image, and makes the pod.
func (n *node) runtime(ctx context.Context) error {
	start := n.berth
	if n.c.Tools != "" {
		start = n.containerd
	}
	if err := start(ctx); err != nil {
		return err
	}
	ns := &cri.NamespaceOption{Network: cri.NamespaceMode_NODE, Pid: cri.NamespaceMode_CONTAINER}
	run, err := n.client.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: n.sandbox(ns)})
	if err != nil {
		return err
	}
	n.pod = run.GetPodSandboxId()
	return nil
}

// berth is the runtime, which imports the image.
func (n *node) berth(ctx context.Context) error {
	var err error
	if n.cri, err = n.lab.StartCRI(ctx, harness.Options{}); err != nil {
		return err
	}
	if n.client, err = harness.Dial(n.lab.Socket()); err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, filepath.Join(n.c.Bin, "berth-cri"), "--config", filepath.Join(n.lab.Run, "berth.toml"), "image", "import", n.c.Archive).CombinedOutput()
	if err != nil {
		return fmt.Errorf("image import: %w: %s", err, out)
	}
	return nil
}

func (n *node) plugins() string { return filepath.Join(n.lab.Run, "dp") }

func (n *node) sandbox(ns *cri.NamespaceOption) *cri.PodSandboxConfig {
	return &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: "gpu", Namespace: "real", Uid: "real-gpu", Attempt: 1},
		Linux:    &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: ns}},
	}
}

// configure writes berth-gpu's configuration, with these resources.
func (n *node) configure(more string) error {
	dev := "/dev"
	if n.c.Fake != "" {
		dev = filepath.Join(n.lab.Run, "dev")
	}
	text := fmt.Sprintf(settings, filepath.Join(n.lab.Dir, "gpu"), filepath.Join(n.lab.Run, "gpu"), filepath.Join(n.lab.Run, "gpu/debug.sock"),
		n.lab.Run, n.plugins(), n.c.Driver, dev, n.lab.CDI(), more)
	return os.WriteFile(n.config(), []byte(text), 0o600)
}

// serve starts berth-gpu with these resources, and waits for n devices.
func (n *node) serve(ctx context.Context, more string, devices int) error {
	if n.gpu != nil {
		n.plugin.Close()
		if err := n.gpu.Stop(); err != nil {
			return err
		}
	}
	if err := n.configure(more); err != nil {
		return err
	}
	var err error
	if n.gpu, err = harness.Start(n.lab.Logs(), "berth-gpu", nil, append([]string{filepath.Join(n.c.Bin, "berth-gpu")}, n.args()...)...); err != nil {
		return err
	}
	n.plugin, err = n.kubelet.Connect(ctx, devices, 60*time.Second)
	if err != nil {
		return fmt.Errorf("%w\n%s", err, n.gpu.Tail(20))
	}
	return nil
}

func (n *node) config() string { return filepath.Join(n.lab.Run, "gpu.toml") }

func (n *node) args(more ...string) []string {
	args := []string{"--config", n.config()}
	if n.c.Fake != "" {
		args = append(args, "--fake", n.c.Fake)
	}
	return append(args, more...)
}

// ask runs berth-gpu with arguments; what it says on its standard error is in the error alone.
func (n *node) ask(ctx context.Context, more ...string) (string, error) {
	return n.tell(ctx, n.args(more...)...)
}

func (n *node) tell(ctx context.Context, args ...string) (string, error) {
	var words strings.Builder
	cmd := exec.CommandContext(ctx, filepath.Join(n.c.Bin, "berth-gpu"), args...)
	cmd.Stderr = &words
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("berth-gpu %v: %w: %s", args, err, words.String())
	}
	return string(out), err
}

// start runs a container with devices, none if there are no ids.
func (n *node) start(ctx context.Context, ids ...string) (string, error) {
	n.seq++
	config := &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: fmt.Sprintf("c%d", n.seq), Attempt: 1}, Image: &cri.ImageSpec{Image: Image, UserSpecifiedImage: Image},
		Linux: &cri.LinuxContainerConfig{
			Resources: &cri.LinuxContainerResources{},
			SecurityContext: &cri.LinuxContainerSecurityContext{
				Capabilities:     &cri.Capability{AddCapabilities: []string{"MKNOD"}},
				NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE, Pid: cri.NamespaceMode_CONTAINER},
			},
		},
	}
	if len(ids) > 0 {
		r, err := n.plugin.Allocate(ctx, &dp.AllocateRequest{ContainerRequests: []*dp.ContainerAllocateRequest{{DevicesIds: ids}}})
		if err != nil {
			return "", err
		}
		for _, d := range r.GetContainerResponses()[0].GetCdiDevices() {
			config.CDIDevices = append(config.CDIDevices, &cri.CDIDevice{Name: d.GetName()})
		}
	}
	ns := &cri.NamespaceOption{Network: cri.NamespaceMode_NODE, Pid: cri.NamespaceMode_CONTAINER}
	c, err := n.client.Runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: n.pod, Config: config, SandboxConfig: n.sandbox(ns)})
	if err != nil {
		return "", err
	}
	_, err = n.client.Runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: c.GetContainerId()})
	return c.GetContainerId(), err
}

// exec runs a command in a container; its output is both streams'.
func (n *node) exec(ctx context.Context, id string, cmd ...string) (string, error) {
	r, err := n.client.Runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: cmd, Timeout: 120})
	if err != nil {
		return "", err
	}
	out := strings.TrimSpace(string(r.GetStdout()) + string(r.GetStderr()))
	if r.GetExitCode() != 0 {
		return out, fmt.Errorf("%v exited with %d: %s", cmd, r.GetExitCode(), out)
	}
	return out, nil
}

// down ends everything, and keeps the logs; the lab's directories are gone after it.
func (n *node) down(ctx context.Context) error {
	var all []error
	if n.plugin != nil {
		n.plugin.Close()
	}
	if n.gpu != nil {
		all = append(all, n.gpu.Stop())
	}
	if n.kubelet != nil {
		n.kubelet.Stop()
	}
	if n.client != nil {
		all = append(all, n.client.RemoveAll(ctx))
		n.client.Close()
	}
	all = append(all, n.keepLogs())
	return join(append(all, harness.Stop(ctx, n.lab)))
}

// keepLogs copies what the programs logged to the directory of what was seen.
func (n *node) keepLogs() error {
	logs, err := filepath.Glob(filepath.Join(n.lab.Logs(), "*.log"))
	all := []error{err}
	for _, l := range logs {
		b, err := os.ReadFile(l)
		all = append(all, err, keep(n.c.Out, filepath.Base(l), string(b)))
	}
	return join(all)
}
