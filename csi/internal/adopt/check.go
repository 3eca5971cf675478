package adopt

import (
	"context"
	"path/filepath"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-project/berth/proto/errs"
)

// directory is the directory that a PersistentVolume stands for on a node; pure.
func directory(pv *corev1.PersistentVolume, node *corev1.Node) (string, error) {
	path := ""
	switch {
	case pv.DeletionTimestamp != nil:
		return "", errs.FailedPrecondition.Errorf("it is being deleted")
	case pv.Spec.HostPath != nil:
		path = pv.Spec.HostPath.Path
	case pv.Spec.Local != nil:
		path = pv.Spec.Local.Path
	default:
		return "", errs.FailedPrecondition.Errorf("it is neither hostPath nor local, so it is no directory of a node")
	}
	if path != filepath.Clean(path) || !filepath.IsAbs(path) || path == "/" {
		return "", errs.FailedPrecondition.Errorf("its path %q is not a clean absolute one below /", path)
	}
	if pv.Spec.VolumeMode != nil && *pv.Spec.VolumeMode != corev1.PersistentVolumeFilesystem {
		return "", errs.FailedPrecondition.Errorf("it is raw block")
	}
	for _, m := range pv.Spec.AccessModes {
		if m != corev1.ReadWriteOnce && m != corev1.ReadWriteOncePod {
			return "", errs.FailedPrecondition.Errorf("its access mode %s is not one of a volume of one node", m)
		}
	}
	if size := pv.Spec.Capacity[corev1.ResourceStorage]; size.Sign() <= 0 {
		return "", errs.FailedPrecondition.Errorf("it has no capacity")
	}
	if !on(pv, node) {
		return "", errs.FailedPrecondition.Errorf("its node affinity does not name this node, %s: adopt it where it is", node.Name)
	}
	return path, nil
}

// on says whether a volume's node affinity allows a node and names it by one value: one that many nodes have may be a
// directory of any.
func on(pv *corev1.PersistentVolume, node *corev1.Node) bool {
	if pv.Spec.NodeAffinity == nil || pv.Spec.NodeAffinity.Required == nil {
		return false
	}
	for _, term := range pv.Spec.NodeAffinity.Required.NodeSelectorTerms {
		for _, e := range term.MatchExpressions {
			if e.Operator == corev1.NodeSelectorOpIn && len(e.Values) == 1 && node.Labels[e.Key] == e.Values[0] {
				return true
			}
		}
		for _, f := range term.MatchFields {
			if f.Key == "metadata.name" && slices.Equal(f.Values, []string{node.Name}) {
				return true
			}
		}
	}
	return false
}

// idle says FailedPrecondition if a pod uses the volume's claim.
func (a *Adopter) idle(ctx context.Context, pv *corev1.PersistentVolume) error {
	r := pv.Spec.ClaimRef
	if r == nil {
		return nil
	}
	pods, err := a.cluster.CoreV1().Pods(r.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for i := range pods.Items {
		if name := user(&pods.Items[i], r.Name); name != "" {
			return errs.FailedPrecondition.Errorf("pod %s/%s uses its claim %s: scale its owner to zero first", r.Namespace, name, r.Name)
		}
	}
	return nil
}

// user is a pod's name if it uses a claim and has not ended.
func user(p *corev1.Pod, claim string) string {
	if p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		return ""
	}
	for _, v := range p.Spec.Volumes {
		if v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ClaimName == claim {
			return p.Name
		}
	}
	return ""
}
