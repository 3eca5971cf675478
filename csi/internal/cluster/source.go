package cluster

import (
	"context"

	"github.com/container-storage-interface/spec/lib/go/csi"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-project/berth/proto/errs"
)

// source finds what a claim shall be a copy of: another claim or a VolumeSnapshot of its namespace.
func (l *Loops) source(ctx context.Context, c *corev1.PersistentVolumeClaim) (*csi.VolumeContentSource, error) {
	ref := c.Spec.DataSource // the API server keeps dataSource and dataSourceRef equal, but for kinds that neither of these is
	if ref == nil && c.Spec.DataSourceRef == nil {
		return nil, nil
	}
	group := ""
	if ref != nil && ref.APIGroup != nil {
		group = *ref.APIGroup
	}
	switch {
	case ref != nil && ref.Kind == "PersistentVolumeClaim" && group == "":
		return l.sourceClaim(ctx, c.Namespace, ref.Name)
	case ref != nil && ref.Kind == "VolumeSnapshot" && group == snapshotGroup:
		return l.sourceSnapshot(ctx, c.Namespace, ref.Name)
	}
	return nil, errs.InvalidArgument.Errorf("claim.spec.dataSource: want a PersistentVolumeClaim or a VolumeSnapshot of the claim's namespace")
}

func (l *Loops) sourceClaim(ctx context.Context, namespace, name string) (*csi.VolumeContentSource, error) {
	from, err := l.client.CoreV1().PersistentVolumeClaims(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, errs.Unavailable.Errorf("claim.spec.dataSource: %w", err)
	}
	if from.Status.Phase != corev1.ClaimBound {
		return nil, errs.Unavailable.Errorf("claim.spec.dataSource: claim %s is not bound yet", name)
	}
	pv, err := l.client.CoreV1().PersistentVolumes().Get(ctx, from.Spec.VolumeName, metav1.GetOptions{})
	if err != nil {
		return nil, errs.Unavailable.Errorf("claim.spec.dataSource: %w", err)
	}
	if !l.mine(pv) {
		return nil, errs.ResourceExhausted.Errorf("claim.spec.dataSource: the volume of claim %s is on another node (its PersistentVolume %s names it): the clone must be there too, so schedule the pod there", name, pv.Name)
	}
	return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: pv.Spec.CSI.VolumeHandle}}}, nil
}

// sourceSnapshot follows a VolumeSnapshot to its content, and back: a content says itself whose it is.
func (l *Loops) sourceSnapshot(ctx context.Context, namespace, name string) (*csi.VolumeContentSource, error) {
	o, err := l.dynamic.Resource(snapshotsResource).Namespace(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, errs.Unavailable.Errorf("claim.spec.dataSource: %w", err)
	}
	s, err := decode[snapshot](o)
	if err != nil {
		return nil, errs.InvalidArgument.Errorf("claim.spec.dataSource: %w", err)
	}
	if !s.Status.ReadyToUse || s.Status.BoundVolumeSnapshotContentName == "" {
		return nil, errs.Unavailable.Errorf("claim.spec.dataSource: VolumeSnapshot %s is not ready yet", name)
	}
	o, err = l.dynamic.Resource(contentsResource).Get(ctx, s.Status.BoundVolumeSnapshotContentName, metav1.GetOptions{})
	if err != nil {
		return nil, errs.Unavailable.Errorf("claim.spec.dataSource: %w", err)
	}
	c, err := decode[content](o)
	if err != nil {
		return nil, errs.InvalidArgument.Errorf("claim.spec.dataSource: %w", err)
	}
	of := c.Spec.VolumeSnapshotRef
	if c.Spec.Driver != l.conf.Name || of.Namespace != namespace || of.Name != name || of.UID != s.UID {
		return nil, errs.InvalidArgument.Errorf("claim.spec.dataSource: VolumeSnapshotContent %s is of driver %s and VolumeSnapshot %s/%s, not of %s and this", c.Name, c.Spec.Driver, of.Namespace, of.Name, l.conf.Name)
	}
	if c.Status == nil || c.Status.SnapshotHandle == "" {
		return nil, errs.Unavailable.Errorf("claim.spec.dataSource: VolumeSnapshotContent %s has no snapshot yet", c.Name)
	}
	handle := c.Status.SnapshotHandle
	if _, err := l.driver.GetSnapshot(ctx, &csi.GetSnapshotRequest{SnapshotId: handle}); errs.Of(err) == errs.NotFound {
		return nil, errs.ResourceExhausted.Errorf("claim.spec.dataSource: snapshot %s is not on this node: what is made of it must be where it is, so schedule the pod there", handle)
	} else if err != nil {
		return nil, err
	}
	return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: handle}}}, nil
}
