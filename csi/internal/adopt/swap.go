package adopt

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-project/berth/internal/atomicfile"
	"github.com/berth-project/berth/proto/errs"
)

// swap is an object that takes another's place: what is written down before the old one goes.
type swap struct {
	Old  *corev1.PersistentVolume `json:"old"`
	New  *corev1.PersistentVolume `json:"new"`
	Path string                   `json:"path"` // of the old one's directory
}

var objectName = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$`) // a DNS subdomain, so no slash

func (a *Adopter) file(name string) (string, error) {
	if !objectName.MatchString(name) {
		return "", errs.InvalidArgument.Errorf("%.260q is no name of a persistent volume", name)
	}
	return filepath.Join(a.conf.Saved, name+".json"), nil
}

// saved is the swap that an earlier run began, or nil.
func (a *Adopter) saved(name string) (*swap, error) {
	path, err := a.file(name)
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(path) //nolint:gosec // the name has no slash
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	s := &swap{}
	return s, json.Unmarshal(b, s)
}

func (a *Adopter) save(name string, s *swap) error {
	path, err := a.file(name)
	if err != nil {
		return err
	}
	b, err := json.MarshalIndent(s, "", " ")
	if err != nil {
		return err
	}
	return errors.Join(os.MkdirAll(a.conf.Saved, 0o700), atomicfile.Write(path, b, 0o600))
}

// swap replaces the object; every step may be done again.
func (a *Adopter) swap(ctx context.Context, s *swap) error {
	api, name := a.cluster.CoreV1().PersistentVolumes(), s.Old.Name
	now, err := api.Get(ctx, name, metav1.GetOptions{})
	if err == nil && now.UID == s.Old.UID {
		// The directory must outlive the object, whatever provisioner looks at it.
		keep := []byte(`{"spec":{"persistentVolumeReclaimPolicy":"Retain"}}`)
		if _, err := api.Patch(ctx, name, types.MergePatchType, keep, metav1.PatchOptions{}); err != nil {
			return err
		}
		if err := api.Delete(ctx, name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &s.Old.UID}}); err != nil && !apierrors.IsNotFound(err) {
			return err
		}
		if err := a.letGo(ctx, s.Old); err != nil {
			return err
		}
		now, err = nil, apierrors.NewNotFound(corev1.Resource("persistentvolumes"), name)
	}
	switch {
	case apierrors.IsNotFound(err):
		if now, err = api.Create(ctx, s.New, metav1.CreateOptions{}); err != nil {
			return err
		}
	case err != nil:
		return err
	}
	if now.Spec.CSI == nil || now.Spec.CSI.VolumeHandle != s.New.Spec.CSI.VolumeHandle {
		return errs.FailedPrecondition.Errorf("persistent volume %s was made by somebody else meanwhile: what it should be is in %s", name, a.conf.Saved)
	}
	path, err := a.file(name)
	if err != nil {
		return err
	}
	a.say("%s: adopted, as volume %s; %s is as it was, remove it when you are content", name, now.Spec.CSI.VolumeHandle, s.Path)
	return os.Remove(path)
}

// letGo takes the finalizers off an object that is being deleted, which protect it for as long as its claim is there,
// and waits until it is gone.
func (a *Adopter) letGo(ctx context.Context, old *corev1.PersistentVolume) error {
	api := a.cluster.CoreV1().PersistentVolumes()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		now, err := api.Get(ctx, old.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) || err == nil && now.UID != old.UID {
			return nil
		}
		if err != nil {
			return err
		}
		change := fmt.Appendf(nil, `{"metadata":{"finalizers":null,"uid":%q}}`, old.UID)
		if _, err := api.Patch(ctx, old.Name, types.MergePatchType, change, metav1.PatchOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for persistent volume %s to be gone: %w", old.Name, ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// object is the PersistentVolume that takes the place of another.
func (a *Adopter) object(old *corev1.PersistentVolume, v *csi.Volume) *corev1.PersistentVolume {
	out := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{
			Name: old.Name, Labels: old.Labels,
			Annotations: map[string]string{"pv.kubernetes.io/provisioned-by": a.conf.Driver, "pv.kubernetes.io/bound-by-controller": "yes"},
			Finalizers:  []string{"external-provisioner.volume.kubernetes.io/finalizer"}, // what a provisioner gives its own
		},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:    corev1.ResourceList{corev1.ResourceStorage: *resource.NewQuantity(v.GetCapacityBytes(), resource.BinarySI)},
			AccessModes: old.Spec.AccessModes, PersistentVolumeReclaimPolicy: old.Spec.PersistentVolumeReclaimPolicy,
			StorageClassName: old.Spec.StorageClassName, VolumeMode: old.Spec.VolumeMode,
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{Key: a.conf.TopologyKey, Operator: corev1.NodeSelectorOpIn, Values: []string{a.conf.Node}}},
			}}}},
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
				Driver: a.conf.Driver, VolumeHandle: v.GetVolumeId(), FSType: a.conf.FSType,
			}},
		},
	}
	if r := old.Spec.ClaimRef; r != nil {
		out.Spec.ClaimRef = &corev1.ObjectReference{APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: r.Namespace, Name: r.Name, UID: r.UID}
	}
	return out
}
