package manager

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	cadvisorapi "github.com/google/cadvisor/lib/model"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/client-go/tools/record"
	"k8s.io/klog/v2"
	reg "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
	"k8s.io/kubernetes/pkg/kubelet/cm/containermap"
	"k8s.io/kubernetes/pkg/kubelet/cm/devicemanager"
	"k8s.io/kubernetes/pkg/kubelet/cm/topologymanager"
	"k8s.io/kubernetes/pkg/kubelet/config"
	"k8s.io/kubernetes/pkg/kubelet/lifecycle"
	"k8s.io/kubernetes/pkg/kubelet/pluginmanager"
)

// kubelet is the part of a kubelet that device plugins meet. Its pods outlive its restarts, as a node's do.
type kubelet struct {
	t    *testing.T
	ctx  context.Context
	log  klog.Logger
	mgr  *devicemanager.ManagerImpl
	quit context.CancelFunc
	stop chan struct{}

	mu   sync.Mutex
	pods map[string]*v1.Pod
	seq  int
}

func newKubelet(t *testing.T) *kubelet {
	k := &kubelet{t: t, log: klog.NewKlogr(), pods: map[string]*v1.Pod{}}
	t.Cleanup(k.down)
	k.up()
	return k
}

// up starts the managers as a new kubelet process does: from the checkpoint.
func (k *kubelet) up() {
	k.t.Helper()
	k.ctx, k.quit = context.WithCancel(klog.NewContext(context.Background(), k.log))
	topology := []cadvisorapi.Node{{Id: 0}, {Id: 1}}
	var err error
	if k.mgr, err = devicemanager.NewManagerImpl(k.log, topology, topologymanager.NewFakeManager(k.log)); err != nil {
		k.t.Fatal(err)
	}
	ready := config.NewSourcesReady(func(sets.Set[string]) bool { return true })
	if err := k.mgr.Start(k.log, k.active, ready, containermap.NewContainerMap(), sets.New[string]()); err != nil {
		k.t.Fatal(err)
	}
	k.stop = make(chan struct{})
	plugins := pluginmanager.NewPluginManager("/var/lib/kubelet/plugins_registry", record.NewFakeRecorder(1000))
	plugins.AddHandler(reg.DevicePlugin, k.mgr.GetWatcherHandler())
	go plugins.Run(k.ctx, ready, k.stop)
}

// down ends them. The plugin's streams end as with the process.
func (k *kubelet) down() {
	if k.mgr == nil {
		return
	}
	close(k.stop)
	k.quit()
	if err := k.mgr.Stop(k.log); err != nil {
		k.t.Error(err)
	}
	k.mgr = nil
}

func (k *kubelet) restart() {
	k.t.Helper()
	k.down()
	k.up()
}

func (k *kubelet) active() []*v1.Pod {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Collect(maps.Values(k.pods))
}

// counts are the resource's healthy devices and all.
func (k *kubelet) counts(name string) (healthy, all int64) {
	capacity, allocatable, _ := k.mgr.GetCapacity(k.log)
	c, a := capacity[v1.ResourceName(name)], allocatable[v1.ResourceName(name)]
	return a.Value(), c.Value()
}

// await waits until the kubelet counts so many healthy devices of so many.
func (k *kubelet) await(name string, healthy, all int64, limit time.Duration) time.Duration {
	k.t.Helper()
	return within(k.t, limit, fmt.Sprintf("%s %d of %d", name, healthy, all), func() (bool, string) {
		h, a := k.counts(name)
		return h == healthy && a == all, fmt.Sprintf("%d of %d", h, a)
	})
}

// run admits a pod that asks for n devices, and gives the ids it got.
func (k *kubelet) run(name string, n int64) (string, []string, error) {
	k.seq++
	id := fmt.Sprintf("pod-%d", k.seq)
	q := *resource.NewQuantity(n, resource.DecimalSI)
	list := v1.ResourceList{v1.ResourceName(name): q}
	pod := &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: id, UID: types.UID(id)},
		Spec:       v1.PodSpec{Containers: []v1.Container{{Name: "c", Resources: v1.ResourceRequirements{Limits: list, Requests: list}}}},
	}
	k.mu.Lock()
	k.pods[id] = pod
	k.mu.Unlock()
	if err := k.mgr.Allocate(k.ctx, pod, &pod.Spec.Containers[0], lifecycle.AddOperation); err != nil {
		k.end(id)
		return "", nil, err
	}
	return id, k.devices(id)[name], nil
}

// devices are a pod's, by resource.
func (k *kubelet) devices(id string) map[string][]string {
	out := map[string][]string{}
	for name, ds := range k.mgr.GetDevices(id, "c") {
		out[name] = slices.Sorted(maps.Keys(ds))
	}
	return out
}

// options are what the runtime would be told.
func (k *kubelet) options(id string) (*devicemanager.DeviceRunContainerOptions, error) {
	k.mu.Lock()
	pod := k.pods[id]
	k.mu.Unlock()
	return k.mgr.GetDeviceRunContainerOptions(k.ctx, pod, &pod.Spec.Containers[0])
}

// end removes a pod.
func (k *kubelet) end(id string) {
	k.mu.Lock()
	delete(k.pods, id)
	k.mu.Unlock()
	k.mgr.UpdateAllocatedDevices(k.log)
}

// settle waits until the device manager writes no checkpoint. It takes what it writes under its lock and writes it
// outside (1.37, writeCheckpoint): the one for a list that came just before a pod may overwrite the pod's, and a
// kubelet that dies then has lost the pod's devices. Nothing a plugin does can help.
func (k *kubelet) settle() {
	k.t.Helper()
	last, since := time.Time{}, time.Now()
	within(k.t, 2*time.Second, "the checkpoint is at rest", func() (bool, string) {
		fi, err := os.Stat("/var/lib/kubelet/device-plugins/kubelet_internal_checkpoint")
		if err == nil && !fi.ModTime().Equal(last) {
			last, since = fi.ModTime(), time.Now()
		}
		return err == nil && time.Since(since) > 15*time.Millisecond, fmt.Sprint(err)
	})
}

// unique fails the test if two pods have a device, or shares of one that they did not get under one offer: of another
// name, or one of them whole.
func (k *kubelet) unique() {
	k.t.Helper()
	type use struct{ pod, resource, id string }
	owners := map[string][]use{} // by UUID
	for _, p := range k.active() {
		for name, ids := range k.devices(p.Name) {
			for _, id := range ids {
				uuid, _, shared := strings.Cut(id, "::")
				for _, o := range owners[uuid] {
					if o.id == id || o.resource != name || !shared || o.id == uuid {
						k.t.Fatalf("%s of %s is %s's, and %s of %s is %s's", o.id, o.resource, o.pod, id, name, p.Name)
					}
				}
				owners[uuid] = append(owners[uuid], use{p.Name, name, id})
			}
		}
	}
}
