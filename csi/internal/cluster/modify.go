package cluster

import (
	"context"
	"fmt"
	"slices"

	"github.com/container-storage-interface/spec/lib/go/csi"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/berth-project/berth/proto/errs"
)

// maybeModify puts a bound claim whose VolumeAttributesClass is not the one that its volume has into the queue.
func (l *Loops) maybeModify(o any) {
	if c, ok := o.(*corev1.PersistentVolumeClaim); ok && c.Status.Phase == corev1.ClaimBound && wantsClass(c) {
		l.modifies.Add(c.Namespace + "/" + c.Name)
	}
}

// wantsClass is pure: whether a claim asks for another VolumeAttributesClass, or an attempt has not come to an end. A
// claim that has taken its wish back wants nothing.
func wantsClass(c *corev1.PersistentVolumeClaim) bool {
	if deref(c.Spec.VolumeAttributesClassName) == "" {
		return false
	}
	return deref(c.Spec.VolumeAttributesClassName) != deref(c.Status.CurrentVolumeAttributesClassName) || c.Status.ModifyVolumeStatus != nil
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// modify changes the volume of one claim to what its VolumeAttributesClass says (KEP-3751): what is going on is in the
// claim's status, what has been done in the PersistentVolume too.
func (l *Loops) modify(ctx context.Context, key string) error {
	namespace, name, err := cache.SplitMetaNamespaceKey(key)
	if err != nil {
		return err
	}
	c, err := l.client.CoreV1().PersistentVolumeClaims(namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) || err == nil && !wantsClass(c) {
		return nil
	}
	if err != nil {
		return err
	}
	pv, err := l.client.CoreV1().PersistentVolumes().Get(ctx, c.Spec.VolumeName, metav1.GetOptions{})
	if err != nil || !l.mine(pv) {
		return err
	}
	class := deref(c.Spec.VolumeAttributesClassName)
	params, err := l.attributes(ctx, class)
	if errs.Of(err) == errs.NotFound {
		_, serr := l.modifying(ctx, c, corev1.PersistentVolumeClaimModifyVolumePending, err)
		return firstOf(serr, err)
	}
	if err == nil {
		if c, err = l.modifying(ctx, c, corev1.PersistentVolumeClaimModifyVolumeInProgress, nil); err != nil {
			return err
		}
		_, err = l.driver.ControllerModifyVolume(ctx, &csi.ControllerModifyVolumeRequest{VolumeId: pv.Spec.CSI.VolumeHandle, MutableParameters: params})
	}
	if err != nil {
		l.events.Eventf(c, nil, corev1.EventTypeWarning, "VolumeModifyFailed", "Modifying", "%s: %v", errs.Of(err), err)
		state := corev1.PersistentVolumeClaimModifyVolumeInProgress
		if errs.Of(err) == errs.InvalidArgument {
			state = corev1.PersistentVolumeClaimModifyVolumeInfeasible
		}
		_, serr := l.modifying(ctx, c, state, err)
		return firstOf(serr, err)
	}
	pv.Spec.VolumeAttributesClassName = &class
	if _, err := l.client.CoreV1().PersistentVolumes().Update(ctx, pv, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("persistent volume %s: %w", pv.Name, err)
	}
	return l.modified(ctx, c, class)
}

func firstOf(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

// attributes are the parameters of a VolumeAttributesClass of this driver.
func (l *Loops) attributes(ctx context.Context, class string) (map[string]string, error) {
	vac, err := l.client.StorageV1().VolumeAttributesClasses().Get(ctx, class, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, errs.NotFound.Errorf("claim.spec.volumeAttributesClassName: %q does not exist", class)
	}
	if err != nil {
		return nil, errs.Unavailable.Errorf("VolumeAttributesClass %s: %w", class, err)
	}
	if vac.DriverName != l.conf.Name {
		return nil, errs.InvalidArgument.Errorf("claim.spec.volumeAttributesClassName: %q is of driver %s, the volume of %s", class, vac.DriverName, l.conf.Name)
	}
	if vac.Parameters == nil {
		return map[string]string{}, nil
	}
	return vac.Parameters, nil
}

func ofModify(c corev1.PersistentVolumeClaimCondition) bool {
	return c.Type == corev1.PersistentVolumeClaimVolumeModifyingVolume || c.Type == corev1.PersistentVolumeClaimVolumeModifyVolumeError
}

// modifying writes into a claim's status how far a change has come; of the conditions only those of a change are ours.
func (l *Loops) modifying(ctx context.Context, c *corev1.PersistentVolumeClaim, state corev1.PersistentVolumeClaimModifyVolumeStatus, why error) (*corev1.PersistentVolumeClaim, error) {
	class := deref(c.Spec.VolumeAttributesClassName)
	if s := c.Status.ModifyVolumeStatus; why == nil && s != nil && s.Status == state && s.TargetVolumeAttributesClassName == class {
		return c, nil
	}
	c = c.DeepCopy()
	c.Status.ModifyVolumeStatus = &corev1.ModifyVolumeStatus{TargetVolumeAttributesClassName: class, Status: state}
	c.Status.Conditions = slices.DeleteFunc(c.Status.Conditions, ofModify)
	add := func(kind corev1.PersistentVolumeClaimConditionType, reason, message string) {
		c.Status.Conditions = append(c.Status.Conditions, corev1.PersistentVolumeClaimCondition{
			Type: kind, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now(), Reason: reason, Message: message,
		})
	}
	if state != corev1.PersistentVolumeClaimModifyVolumePending {
		add(corev1.PersistentVolumeClaimVolumeModifyingVolume, "", "The volume is being changed to class "+class+".")
	}
	if why != nil {
		add(corev1.PersistentVolumeClaimVolumeModifyVolumeError, "Modifying", why.Error())
	}
	return l.client.CoreV1().PersistentVolumeClaims(c.Namespace).UpdateStatus(ctx, c, metav1.UpdateOptions{})
}

func (l *Loops) modified(ctx context.Context, c *corev1.PersistentVolumeClaim, class string) error {
	c = c.DeepCopy()
	c.Status.ModifyVolumeStatus, c.Status.CurrentVolumeAttributesClassName = nil, &class
	c.Status.Conditions = slices.DeleteFunc(c.Status.Conditions, ofModify)
	if _, err := l.client.CoreV1().PersistentVolumeClaims(c.Namespace).UpdateStatus(ctx, c, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("status of claim %s/%s: %w", c.Namespace, c.Name, err)
	}
	l.events.Eventf(c, nil, corev1.EventTypeNormal, "VolumeModifySuccessful", "Modifying", "the volume is as class %s says", class)
	return nil
}
