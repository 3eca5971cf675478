package cluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	"github.com/berth-project/berth/proto/errs"
)

const (
	selectedNode = "volume.kubernetes.io/selected-node"
	fsTypeKey    = "csi.storage.k8s.io/fstype"
)

// provisioner implements the library's ports.
type provisioner Loops

var (
	_ controller.BlockProvisioner = (*provisioner)(nil)
	_ controller.Qualifier        = (*provisioner)(nil)
	_ controller.DeletionGuard    = (*provisioner)(nil)
)

// ShouldProvision implements controller.Qualifier: claims that the scheduler has placed on this node. A class that binds
// immediately has no such node, and is served by nobody; the README says so.
func (p *provisioner) ShouldProvision(_ context.Context, c *corev1.PersistentVolumeClaim) bool {
	return c.Annotations[selectedNode] == p.conf.Node
}

// ShouldDelete implements controller.DeletionGuard.
func (p *provisioner) ShouldDelete(_ context.Context, pv *corev1.PersistentVolume) bool {
	return (*Loops)(p).mine(pv)
}

// SupportsBlock implements controller.BlockProvisioner; whether the pool does, the driver says.
func (p *provisioner) SupportsBlock(context.Context) bool { return true }

// Provision implements controller.Provisioner.
func (p *provisioner) Provision(ctx context.Context, o controller.ProvisionOptions) (*corev1.PersistentVolume, controller.ProvisioningState, error) {
	req, err := p.request(ctx, o)
	if err != nil {
		return nil, refused(err), fmt.Errorf("%s: %w", errs.Of(err), err)
	}
	resp, err := p.create(ctx, o, req)
	if err != nil {
		return nil, state(err), fmt.Errorf("%s: %w", errs.Of(err), err)
	}
	v := resp.GetVolume()
	mode, fs := o.PVC.Spec.VolumeMode, req.GetVolumeCapabilities()[0].GetMount().GetFsType()
	pv := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: o.PVName, Annotations: map[string]string{"pv.kubernetes.io/provisioned-by": p.conf.Name}},
		Spec: corev1.PersistentVolumeSpec{
			PersistentVolumeReclaimPolicy: *o.StorageClass.ReclaimPolicy,
			AccessModes:                   o.PVC.Spec.AccessModes, MountOptions: o.StorageClass.MountOptions, VolumeMode: mode,
			Capacity:     corev1.ResourceList{corev1.ResourceStorage: *resource.NewQuantity(v.GetCapacityBytes(), resource.BinarySI)},
			NodeAffinity: p.affinity(), VolumeAttributesClassName: o.PVC.Spec.VolumeAttributesClassName,
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
				Driver: p.conf.Name, VolumeHandle: v.GetVolumeId(), FSType: fs, VolumeAttributes: v.GetVolumeContext(),
			}},
		},
	}
	return pv, controller.ProvisioningFinished, nil
}

// create makes the volume, unless the claims of its pod do not fit together; then the scheduler knows of it before the
// claim is given back to it.
func (p *provisioner) create(ctx context.Context, o controller.ProvisionOptions, req *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	l := (*Loops)(p)
	if err := l.together(ctx, o.PVC, o.StorageClass); err != nil {
		if errs.Of(err) == errs.ResourceExhausted {
			err = errors.Join(err, l.publish(ctx))
		}
		return nil, err
	}
	resp, err := p.driver.CreateVolume(ctx, req)
	l.room.done(o.PVC.UID, err == nil, time.Now())
	return resp, err
}

func (p *provisioner) affinity() *corev1.VolumeNodeAffinity {
	return &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
		MatchExpressions: []corev1.NodeSelectorRequirement{{Key: p.conf.TopologyKey, Operator: corev1.NodeSelectorOpIn, Values: []string{p.conf.Node}}},
	}}}}
}

// state is what a failure means for the claim: no room means another node, something under way means the same call
// again, everything else is final, because the driver leaves nothing behind.
func state(err error) controller.ProvisioningState {
	switch {
	case errs.Of(err) == errs.ResourceExhausted:
		return controller.ProvisioningReschedule
	case !final(err):
		return controller.ProvisioningInBackground
	}
	return controller.ProvisioningFinished
}

// refused is what it means that a claim cannot even be asked for: what it is to be made of is on another node, or it is wrong, or
// not ready yet; nothing was begun. Less is not offered for it, as for claims without room: a claim whose source is on no node
// any more would close the class to all others.
func refused(err error) controller.ProvisioningState {
	if errs.Of(err) == errs.ResourceExhausted {
		return controller.ProvisioningReschedule
	}
	return controller.ProvisioningFinished
}

// final says whether an error is an answer, and nothing is going on any more.
func final(err error) bool {
	switch errs.Of(err) {
	case errs.Aborted, errs.Unavailable, errs.DeadlineExceeded, errs.Canceled:
		return false
	}
	return true
}

// request is the CSI request for a claim, as external-provisioner makes it.
func (p *provisioner) request(ctx context.Context, o controller.ProvisionOptions) (*csi.CreateVolumeRequest, error) {
	size := o.PVC.Spec.Resources.Requests[corev1.ResourceStorage]
	params := maps.Clone(o.StorageClass.Parameters)
	if params == nil {
		params = map[string]string{}
	}
	fs := params[fsTypeKey]
	delete(params, fsTypeKey)
	params["csi.storage.k8s.io/pvc/name"], params["csi.storage.k8s.io/pvc/namespace"] = o.PVC.Name, o.PVC.Namespace
	params["csi.storage.k8s.io/pv/name"] = o.PVName
	req := &csi.CreateVolumeRequest{
		Name: o.PVName, Parameters: params, CapacityRange: &csi.CapacityRange{RequiredBytes: size.Value()},
		AccessibilityRequirements: &csi.TopologyRequirement{Requisite: []*csi.Topology{{Segments: map[string]string{p.conf.TopologyKey: p.conf.Node}}}},
	}
	if o.PVC.Spec.Selector != nil {
		return nil, errs.InvalidArgument.Errorf("claim.spec.selector is not supported for volumes that are made on demand")
	}
	for _, m := range o.PVC.Spec.AccessModes {
		c := &csi.VolumeCapability{AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER}}
		switch m {
		case corev1.ReadWriteOncePod:
			c.AccessMode.Mode = csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER
		case corev1.ReadWriteOnce:
		default:
			return nil, errs.InvalidArgument.Errorf("claim.spec.accessModes: %s, a local volume is on one node: use ReadWriteOnce or ReadWriteOncePod", m)
		}
		if o.PVC.Spec.VolumeMode != nil && *o.PVC.Spec.VolumeMode == corev1.PersistentVolumeBlock {
			c.AccessType = &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}
		} else {
			c.AccessType = &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: fs, MountFlags: o.StorageClass.MountOptions}}
		}
		req.VolumeCapabilities = append(req.VolumeCapabilities, c)
	}
	var err error
	if class := deref(o.PVC.Spec.VolumeAttributesClassName); class != "" {
		if req.MutableParameters, err = (*Loops)(p).attributes(ctx, class); err != nil {
			return nil, err
		}
	}
	req.VolumeContentSource, err = (*Loops)(p).source(ctx, o.PVC)
	return req, err
}

// Delete implements controller.Provisioner.
func (p *provisioner) Delete(ctx context.Context, pv *corev1.PersistentVolume) error {
	_, err := p.driver.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: pv.Spec.CSI.VolumeHandle})
	return err
}
