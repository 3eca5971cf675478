// Package cluster runs the loops that make a CSI driver useful in Kubernetes, for this node alone: claims that the
// scheduler has placed here become volumes, claims that grow grow, and what is left to promise is published for the
// scheduler, and snapshots of this node's volumes are made. They do what external-provisioner, external-resizer and
// csi-snapshotter do in pods of their own, in one process, on shared
// informers, and call the driver's CSI verbs as those do, so nothing can be done here that a sidecar could not do.
//
// The package knows the API server and CSI's messages, and nothing of pools or mounts.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"
)

// Driver are the CSI verbs that the loops call.
type Driver interface {
	CreateVolume(context.Context, *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error)
	DeleteVolume(context.Context, *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error)
	ControllerExpandVolume(context.Context, *csi.ControllerExpandVolumeRequest) (*csi.ControllerExpandVolumeResponse, error)
	ControllerModifyVolume(context.Context, *csi.ControllerModifyVolumeRequest) (*csi.ControllerModifyVolumeResponse, error)
	ControllerGetVolume(context.Context, *csi.ControllerGetVolumeRequest) (*csi.ControllerGetVolumeResponse, error)
	CreateSnapshot(context.Context, *csi.CreateSnapshotRequest) (*csi.CreateSnapshotResponse, error)
	DeleteSnapshot(context.Context, *csi.DeleteSnapshotRequest) (*csi.DeleteSnapshotResponse, error)
	GetSnapshot(context.Context, *csi.GetSnapshotRequest) (*csi.GetSnapshotResponse, error)
	CreateVolumeGroupSnapshot(context.Context, *csi.CreateVolumeGroupSnapshotRequest) (*csi.CreateVolumeGroupSnapshotResponse, error)
	DeleteVolumeGroupSnapshot(context.Context, *csi.DeleteVolumeGroupSnapshotRequest) (*csi.DeleteVolumeGroupSnapshotResponse, error)
	GetCapacity(context.Context, *csi.GetCapacityRequest) (*csi.GetCapacityResponse, error)
	ListVolumes(context.Context, *csi.ListVolumesRequest) (*csi.ListVolumesResponse, error)
}

// Config of the loops.
type Config struct {
	Name, Node, TopologyKey string
	Kubeconfig              string // "": the pod's service account
	QPS                     float32
	Burst, Workers          int
	Namespace               string                    // of CSIStorageCapacity objects
	OrphanAfter             time.Duration             // a volume of that age has a PersistentVolume, or is reported
	Created                 func(id string) time.Time // when a volume was made; zero: there is none
	Log                     *slog.Logger
}

// Loops is what runs. Use [New].
type Loops struct {
	conf     Config
	driver   Driver
	client   kubernetes.Interface
	dynamic  dynamic.Interface // for the snapshot API, whose types are not Kubernetes' own
	objects  informers.SharedInformerFactory
	events   events.EventRecorder
	resizes  workqueue.TypedRateLimitingInterface[string]
	modifies workqueue.TypedRateLimitingInterface[string]
	changed  chan struct{}
	room     *room
	offering sync.Mutex                               // one publication at a time, held to its end: an older figure never follows a newer one
	offered  map[string]*storagev1.CSIStorageCapacity // by name, as this process last saw or wrote them; nil: not known
}

// New makes the loops; nothing is started, the API server need not be there.
func New(conf Config, d Driver) (*Loops, error) {
	var rc *rest.Config
	var err error
	if conf.Kubeconfig == "" {
		rc, err = rest.InClusterConfig()
	} else {
		rc, err = clientcmd.BuildConfigFromFlags("", conf.Kubeconfig)
	}
	if err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	rc.QPS, rc.Burst, rc.UserAgent = conf.QPS, conf.Burst, "berth-csi"
	rc.ContentType, rc.AcceptContentTypes = "application/vnd.kubernetes.protobuf", "application/vnd.kubernetes.protobuf,application/json"
	client, err := kubernetes.NewForConfig(rc)
	if err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	untyped, err := dynamic.NewForConfig(rc)
	if err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	return &Loops{
		conf: conf, driver: d, client: client, dynamic: untyped, objects: informers.NewSharedInformerFactory(client, 0),
		changed: make(chan struct{}, 1), room: newRoom(),
		resizes: workqueue.NewTypedRateLimitingQueue(backoff()), modifies: workqueue.NewTypedRateLimitingQueue(backoff()),
	}, nil
}

// Changed says that the free capacity of a pool may have changed; it never blocks.
func (l *Loops) Changed(string) {
	select {
	case l.changed <- struct{}{}:
	default:
	}
}

// Run runs all loops until ctx ends, and waits for them.
func (l *Loops) Run(ctx context.Context) error {
	broadcaster := events.NewBroadcaster(&events.EventSinkImpl{Interface: l.client.EventsV1()})
	if err := broadcaster.StartRecordingToSinkWithContext(ctx); err != nil {
		return err
	}
	defer broadcaster.Shutdown()
	l.events = broadcaster.NewRecorder(scheme.Scheme, l.conf.Name)
	claims := l.objects.Core().V1().PersistentVolumeClaims().Informer()
	volumes := l.objects.Core().V1().PersistentVolumes().Informer()
	classes := l.objects.Storage().V1().StorageClasses().Informer()
	if err := errors.Join(l.watchClaims(claims), l.watchClasses(classes)); err != nil {
		return err
	}
	l.objects.StartWithContext(ctx)
	defer l.objects.Shutdown()
	for kind, ok := range l.objects.WaitForCacheSync(ctx.Done()) {
		if !ok && ctx.Err() == nil {
			return fmt.Errorf("cluster: %s cannot be watched", kind)
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	l.conf.Log.Info("watching the cluster", "node", l.conf.Node)
	p := controller.NewProvisionController(ctx, l.client, l.conf.Name, (*provisioner)(l),
		controller.LeaderElection(false), controller.Threadiness(l.conf.Workers), controller.AddFinalizer(true),
		controller.ClaimsInformer(claims), controller.VolumesInformer(volumes), controller.ClassesInformer(classes),
		controller.FailedProvisionThreshold(0), controller.FailedDeleteThreshold(0), controller.RetryIntervalMax(time.Minute),
		controller.CreateProvisionedPVLimiter(backoff()), controller.RateLimiter(backoff()),
	)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { p.Run(ctx) })
	wg.Go(func() { l.work(ctx, "expanding", l.resizes, l.resize) })
	wg.Go(func() { l.work(ctx, "modifying", l.modifies, l.modify) })
	wg.Go(func() { l.snapshots(ctx) })
	l.capacityLoop(ctx)
	l.resizes.ShutDown()
	l.modifies.ShutDown()
	return nil
}

// backoff of what failed: quick, because on one node there is nobody to be kind to but the API server, which QPS is for.
func backoff() workqueue.TypedRateLimiter[string] {
	return workqueue.NewTypedItemExponentialFailureRateLimiter[string](200*time.Millisecond, time.Minute)
}

// mine says whether a PersistentVolume is a volume of this node.
func (l *Loops) mine(pv *corev1.PersistentVolume) bool {
	if pv.Spec.CSI == nil || pv.Spec.CSI.Driver != l.conf.Name || pv.Spec.NodeAffinity == nil || pv.Spec.NodeAffinity.Required == nil {
		return false
	}
	for _, term := range pv.Spec.NodeAffinity.Required.NodeSelectorTerms {
		for _, e := range term.MatchExpressions {
			if e.Key == l.conf.TopologyKey && len(e.Values) == 1 && e.Values[0] == l.conf.Node {
				return true
			}
		}
	}
	return false
}
