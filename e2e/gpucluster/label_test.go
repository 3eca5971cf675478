package gpucluster

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// label sets a label of the node, or takes it away (null).
func (x *test) label(key, value string) {
	x.Helper()
	_, err := node.cluster.Client.CoreV1().Nodes().Patch(x.ctx, node.lab.Node(), types.MergePatchType,
		fmt.Appendf(nil, `{"metadata":{"labels":{%q:%s}}}`, key, value), metav1.PatchOptions{})
	x.ok(err)
}

const choice = "nvidia.com/device-plugin.config"

// TestOverrideByLabel: the node's label picks one of the configuration's sets, at once; a name that is none changes
// nothing; the choice holds over a restart without an API server.
func TestOverrideByLabel(t *testing.T) {
	x := begin(t, "override")
	shared := func() error {
		return errors.Join(allocatable(x.ctx, "nvidia.com/gpu.shared", 4*gpus), allocatable(x.ctx, "nvidia.com/gpu", 0))
	}
	x.label(choice, `"shared"`)
	x.await("the label's offer", shared)
	x.label(choice, `"nonsense"`)
	x.await("the refusal", func() error {
		if log := node.gpu.Tail(50); !strings.Contains(log, "no overrides.nonsense") {
			return errors.New(log)
		}
		return nil
	})
	if s := status(x); s.Override != "shared" {
		t.Errorf("the override that holds is %q", s.Override)
	}
	x.ok(node.gpu.Stop())
	nowhere := node.lab.Run + "/nowhere.kubeconfig"
	x.ok(os.WriteFile(nowhere, []byte(`clusters: [{name: c, cluster: {server: "https://127.0.0.1:1"}}]
users: [{name: u, user: {token: x}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
`), 0o600))
	x.ok(startPlugin(nowhere))
	x.await("the kept choice", func() error {
		if out := node.gpu.Tail(50); !strings.Contains(out, "nvidia.com/gpu.shared=32/32") {
			return errors.New(out)
		}
		return shared()
	})
	x.label(choice, "null")
	x.ok(node.gpu.Stop())
	kubelet, err := node.cluster.Kubeconfig("as-kubelet", node.cluster.Token("system:node:"+node.lab.Node()))
	x.ok(err)
	x.ok(startPlugin(kubelet)) // the kubelet's credentials will do
	x.await("the file's own offer", func() error {
		return errors.Join(allocatable(x.ctx, "nvidia.com/gpu", gpus), allocatable(x.ctx, "nvidia.com/gpu.shared", 0))
	})
}

// TestFeatureLabels: the node is described as GPU feature discovery does it, pods are placed by it, labels follow the
// node, and those of others stay.
func TestFeatureLabels(t *testing.T) {
	x := begin(t, "features")
	x.label("nvidia.com/theirs", `"1"`)
	want := map[string]string{
		"gpu.present": "true", "gpu.count": "8", "gpu.product": "NVIDIA-H100-80GB-HBM3", "gpu.family": "hopper", "gpu.memory": "81559",
		"gpu.compute.major": "9", "cuda.driver.major": "580", "mig.capable": "true", "mig.strategy": "none", "gpu.sharing-strategy": "none", "theirs": "1",
	}
	described := func() error {
		o, err := node.cluster.Client.CoreV1().Nodes().Get(x.ctx, node.lab.Node(), metav1.GetOptions{})
		for k, v := range want {
			if got, there := o.Labels["nvidia.com/"+k]; got != v || there != (v != "") {
				err = errors.Join(err, fmt.Errorf("%s=%s, want %q", k, got, v))
			}
		}
		return err
	}
	x.await("the labels", described)
	x.pod("placed", false, func(p *corev1.PodSpec) {
		p.NodeSelector = map[string]string{"nvidia.com/gpu.product": want["gpu.product"]}
	})
	x.run("placed")
	x.label("nvidia.com/gpu.family", "null") // somebody takes one away
	x.await("it to be back", described)
	old, err := os.ReadFile(profile())
	x.ok(err)
	x.ok(os.WriteFile(profile(), append(old, "faults:\n  - {gpu: 0, sample: {lost: true}}\n"...), 0o600))
	x.await("a lost GPU to be taken from the offer", func() error { return allocatable(x.ctx, "nvidia.com/gpu", gpus-1) })
	x.await("the labels to stay: it is still there", described)
	x.ok(os.WriteFile(profile(), old, 0o600))
	x.await("it to be offered again", func() error { return allocatable(x.ctx, "nvidia.com/gpu", gpus) })
	x.label(choice, `"shared"`)
	want["gpu.sharing-strategy"], want["gpu.replicas"] = "time-slicing", "4"
	x.await("the labels of sharing", described)
	x.label(choice, "null")
	want["gpu.sharing-strategy"], want["gpu.replicas"] = "none", "1"
	x.await("those without", described)
	x.label("nvidia.com/theirs", "null")
}
