// Package gone looks after what has no node: persistent volumes, claims and snapshots of nodes that will not return. The
// loops of a node do all that a node can do; this is the one thing that none is left to do, so it is a program of its
// own, one for the cluster, and does nothing that its policy does not name.
//
// A node is gone when its Node object has been missing for a while. One that is only not ready may come back with all
// it has, and nothing is done. Every step may be done twice, so two at once do no harm and no leader is elected.
package gone

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"

	"github.com/berth-project/berth/proto/errs"
)

// Policy is what may be done about a node that is gone.
type Policy string

// The policies, each with what the one before it does.
const (
	// Report only says what there is.
	Report Policy = "report"
	// Forget lets objects go that somebody has deleted already, and that wait for the node to erase what they stand for.
	Forget Policy = "forget"
	// Release deletes the claims too, so that a StatefulSet makes new ones elsewhere: the data went with the node.
	Release Policy = "release"
)

// Config says what is looked after.
type Config struct {
	Driver, TopologyKey string
	Policy              Policy
	After               time.Duration // how long a Node must have been missing
	Every               time.Duration // how often is looked
	Log                 *slog.Logger
}

// Validate says what is wrong.
func (c Config) Validate() error {
	if !slices.Contains([]Policy{Report, Forget, Release}, c.Policy) {
		return errs.InvalidArgument.Errorf("policy %q: want %s, %s or %s", c.Policy, Report, Forget, Release)
	}
	if c.After <= 0 || c.Every <= 0 {
		return errs.InvalidArgument.Errorf("after %s, every %s: both must be above 0", c.After, c.Every)
	}
	return nil
}

// Collector is what runs. Use [New].
type Collector struct {
	conf    Config
	client  kubernetes.Interface
	dynamic dynamic.Interface
	missing map[string]time.Time // node: since when it is missed
}

// New makes a collector; nothing is done yet.
func New(conf Config, client kubernetes.Interface, objects dynamic.Interface) *Collector {
	return &Collector{conf: conf, client: client, dynamic: objects, missing: map[string]time.Time{}}
}

// Run looks again and again, until ctx ends.
func (c *Collector) Run(ctx context.Context) error {
	tick := time.NewTicker(c.conf.Every)
	defer tick.Stop()
	for {
		if err := c.Look(ctx, time.Now()); err != nil && ctx.Err() == nil {
			c.conf.Log.Warn("looking after nodes that are gone", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Look does what is to be done now.
func (c *Collector) Look(ctx context.Context, now time.Time) error {
	nodes, err := c.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	volumes, err := c.client.CoreV1().PersistentVolumes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	contents, err := c.contents(ctx)
	if err != nil {
		return err
	}
	where := map[string]bool{}
	for i := range volumes.Items {
		where[c.node(&volumes.Items[i])] = true
	}
	for i := range contents {
		where[contents[i].GetAnnotations()[c.conf.TopologyKey]] = true
	}
	c.miss(where, nodes.Items, now)
	var failed error
	for i := range volumes.Items {
		pv := &volumes.Items[i]
		if since, gone := c.missing[c.node(pv)]; gone && now.Sub(since) >= c.conf.After {
			if err := c.handle(ctx, pv, since); err != nil {
				failed = errors.Join(failed, fmt.Errorf("persistent volume %s: %w", pv.Name, err))
			}
		}
	}
	for i := range contents {
		o := &contents[i]
		if since, gone := c.missing[o.GetAnnotations()[c.conf.TopologyKey]]; gone && now.Sub(since) >= c.conf.After {
			if err := c.handleContent(ctx, o, since); err != nil {
				failed = errors.Join(failed, fmt.Errorf("snapshot content %s: %w", o.GetName(), err))
			}
		}
	}
	return failed
}

// miss notes since when the nodes that have something are missed; one that is there is not.
func (c *Collector) miss(where map[string]bool, nodes []corev1.Node, now time.Time) {
	delete(where, "")
	for i := range nodes {
		delete(where, nodes[i].Name)
	}
	missed := map[string]time.Time{}
	for node := range where {
		if missed[node] = now; !c.missing[node].IsZero() {
			missed[node] = c.missing[node]
		}
	}
	c.missing = missed
}

// node is the node that a volume of the driver is on, or "".
func (c *Collector) node(pv *corev1.PersistentVolume) string {
	if pv.Spec.CSI == nil || pv.Spec.CSI.Driver != c.conf.Driver || pv.Spec.NodeAffinity == nil || pv.Spec.NodeAffinity.Required == nil {
		return ""
	}
	for _, term := range pv.Spec.NodeAffinity.Required.NodeSelectorTerms {
		for _, e := range term.MatchExpressions {
			if e.Key == c.conf.TopologyKey && e.Operator == corev1.NodeSelectorOpIn && len(e.Values) == 1 {
				return e.Values[0]
			}
		}
	}
	return ""
}

// step is what is done about one volume.
type step string

const (
	tell   step = "report"
	forget step = "forget"
	unbind step = "delete its claim"
)

// next decides, purely: a volume whose claim is gone and that would be deleted is forgotten; one that is retained is its
// operator's; a claim is deleted only where the policy says so.
func next(pv *corev1.PersistentVolume, p Policy) step {
	deleted := pv.Status.Phase == corev1.VolumeReleased && pv.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete ||
		pv.DeletionTimestamp != nil
	switch {
	case deleted && p != Report:
		return forget
	case p == Release && pv.Status.Phase == corev1.VolumeBound && pv.Spec.ClaimRef != nil && pv.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete:
		return unbind
	}
	return tell
}

// ours is the finalizer that keeps a volume's object until the volume is erased.
const ours = "external-provisioner.volume.kubernetes.io/finalizer"

func (c *Collector) handle(ctx context.Context, pv *corev1.PersistentVolume, since time.Time) error {
	todo := next(pv, c.conf.Policy)
	c.conf.Log.Warn("a volume's node is gone", "volume", pv.Name, "node", c.node(pv), "since", since, "phase", string(pv.Status.Phase), "step", string(todo))
	switch todo {
	case unbind:
		r := pv.Spec.ClaimRef
		err := c.client.CoreV1().PersistentVolumeClaims(r.Namespace).Delete(ctx, r.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &r.UID}})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return err
	case forget:
		return c.forget(ctx, pv)
	}
	return nil
}

func (c *Collector) forget(ctx context.Context, pv *corev1.PersistentVolume) error {
	api := c.client.CoreV1().PersistentVolumes()
	if pv.DeletionTimestamp == nil {
		if err := api.Delete(ctx, pv.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &pv.UID}}); err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
	now, err := api.Get(ctx, pv.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) || err == nil && now.UID != pv.UID {
		return nil
	}
	if err != nil {
		return err
	}
	change, found := without(now, ours)
	if !found {
		return nil // others keep it, for reasons of theirs
	}
	_, err = api.Patch(ctx, pv.Name, types.MergePatchType, change, metav1.PatchOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
