package cluster

import (
	"context"
	"log/slog"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/types/known/wrapperspb"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
)

// pool is a driver that has so much free.
type pool struct {
	Driver
	free int64
}

func (p *pool) GetCapacity(context.Context, *csi.GetCapacityRequest) (*csi.GetCapacityResponse, error) {
	return &csi.GetCapacityResponse{AvailableCapacity: p.free, MaximumVolumeSize: wrapperspb.Int64(p.free)}, nil
}

// TestPublish: a change is one request; what is published is asked for at first and when a write fails, and is made again
// if somebody removed it.
func TestPublish(t *testing.T) {
	ctx := t.Context()
	class := &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "fast"}, Provisioner: "csi.berth.dev"}
	client := fake.NewClientset(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}, class)
	p := &pool{free: 5 * gib}
	l := &Loops{
		conf:   Config{Name: "csi.berth.dev", Node: "n1", TopologyKey: "csi.berth.dev/node", Namespace: "kube-system", Log: slog.New(slog.DiscardHandler)},
		driver: p, client: client, objects: informers.NewSharedInformerFactory(client, 0), room: newRoom(),
	}
	if err := l.objects.Storage().V1().StorageClasses().Informer().GetStore().Add(class); err != nil {
		t.Fatal(err)
	}
	capacities := client.StorageV1().CSIStorageCapacities("kube-system")
	for _, step := range []struct {
		name    string
		free    int64
		before  func() error
		actions string // the verbs on capacities
	}{
		{"first", 5 * gib, nil, "list create "},
		{"nothing changed", 5 * gib, nil, ""},
		{"changed", 4 * gib, nil, "update "},
		{"removed by somebody", 3 * gib, func() error { return capacities.Delete(ctx, l.objectName("fast"), metav1.DeleteOptions{}) }, "delete update list create "},
		{"a minute later", 3 * gib, func() error { l.look(); return nil }, "list "},
	} {
		client.ClearActions()
		p.free = step.free
		if step.before != nil {
			if err := step.before(); err != nil {
				t.Fatal(err)
			}
		}
		if err := l.publish(ctx); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		verbs := ""
		for _, a := range client.Actions() {
			if a.GetResource().Resource == "csistoragecapacities" {
				verbs += a.GetVerb() + " "
			}
		}
		if verbs != step.actions {
			t.Errorf("%s: %q, want %q", step.name, verbs, step.actions)
		}
		o, err := capacities.Get(ctx, l.objectName("fast"), metav1.GetOptions{})
		if err != nil || o.Capacity.Value() != step.free || o.MaximumVolumeSize.Value() != step.free || o.OwnerReferences[0].Name != "n1" {
			t.Errorf("%s: %+v, %v", step.name, o, err)
		}
	}
}
