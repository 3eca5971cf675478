// Package adopt takes over persistent volumes that are plain directories of this node, as local-path-provisioner and
// hand-made hostPath and local volumes are: their content moves into a volume of berth-csi, with a limit, and a
// PersistentVolume of the same name takes the place of the old one, so claim and pods stay as they are.
//
//	checked ─▶ volume made ─▶ content copied ─▶ new object saved ─▶ old object gone ─▶ new object made
//	              │ killed: the next run makes it anew │ killed: the next run goes on from the saved object
//
// The directory is only read; it stays where it is until an operator removes it. The driver is spoken to by CSI, as a
// sidecar would, and the cluster with the operator's own rights.
package adopt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/berth-project/berth/csi/internal/tree"
	"github.com/berth-project/berth/internal/inroot"
	"github.com/berth-project/berth/proto/errs"
)

// Config says what is adopted where to.
type Config struct {
	Driver, Node, TopologyKey string
	Pool, FSType              string // "": the default
	KubeletDir                string // volumes are staged below it
	Saved                     string // directory for objects that are being replaced
	Out                       io.Writer
}

// Adopter adopts one volume after another.
type Adopter struct {
	conf    Config
	cluster kubernetes.Interface
	volumes csi.ControllerClient
	node    csi.NodeClient
}

// New makes an Adopter; nothing is done yet.
func New(conf Config, cluster kubernetes.Interface, volumes csi.ControllerClient, node csi.NodeClient) *Adopter {
	return &Adopter{conf: conf, cluster: cluster, volumes: volumes, node: node}
}

func (a *Adopter) say(format string, args ...any) { fmt.Fprintf(a.conf.Out, format+"\n", args...) } //nolint:errcheck // a message

// Adopt takes over one PersistentVolume. One that is adopted already is fine; one that is in use, of another node or no
// directory is FailedPrecondition, and nothing was changed.
func (a *Adopter) Adopt(ctx context.Context, name string) error {
	// 1. Where an earlier run stopped between the old object and the new one, go on.
	if s, err := a.saved(name); err != nil || s != nil {
		if err != nil {
			return err
		}
		return a.swap(ctx, s)
	}
	pv, err := a.cluster.CoreV1().PersistentVolumes().Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return errs.NotFound.Errorf("persistent volume %q does not exist", name)
	}
	if err != nil {
		return err
	}
	if pv.Spec.CSI != nil && pv.Spec.CSI.Driver == a.conf.Driver {
		a.say("%s: adopted already, as volume %s", name, pv.Spec.CSI.VolumeHandle)
		return nil
	}
	// 2. Is it one, and does nobody use it?
	node, err := a.cluster.CoreV1().Nodes().Get(ctx, a.conf.Node, metav1.GetOptions{})
	if err != nil {
		return err
	}
	path, err := directory(pv, node)
	if err == nil {
		err = a.idle(ctx, pv)
	}
	if err != nil {
		return fmt.Errorf("persistent volume %s: %w", name, err)
	}
	// 3. A volume of the same size with the same content.
	v, err := a.copy(ctx, pv, path)
	if err != nil {
		return fmt.Errorf("persistent volume %s: %w", name, err)
	}
	// 4. The new object in the old one's place, if still nobody uses it.
	if err := a.idle(ctx, pv); err != nil {
		return fmt.Errorf("persistent volume %s: %w", name, err)
	}
	s := &swap{Old: pv, New: a.object(pv, v), Path: path}
	if err := a.save(name, s); err != nil {
		return err
	}
	return a.swap(ctx, s)
}

// copy makes the volume and fills it. What an earlier run left half filled is made anew: nobody has it yet.
func (a *Adopter) copy(ctx context.Context, pv *corev1.PersistentVolume, path string) (*csi.Volume, error) {
	from, err := openDirectory(path)
	if err != nil {
		return nil, err
	}
	defer from.Close() //nolint:errcheck // read only
	size := pv.Spec.Capacity[corev1.ResourceStorage]
	used, err := tree.Size(ctx, from)
	if err != nil {
		return nil, err
	}
	if used.Bytes > size.Value() {
		return nil, errs.OutOfRange.Errorf("%s holds %d bytes and has promised %s: remove some, berth-csi gives no more than was promised", path, used.Bytes, size.String())
	}
	req := a.request(pv)
	for range 2 {
		resp, err := a.volumes.CreateVolume(ctx, req)
		if err != nil {
			return nil, err
		}
		v := resp.GetVolume()
		fresh, err := a.fill(ctx, v.GetVolumeId(), from)
		if err != nil || fresh {
			a.say("%s: %d bytes and %d inodes of %s are in volume %s", pv.Name, used.Bytes, used.Inodes, path, v.GetVolumeId())
			return v, err
		}
		if _, err := a.volumes.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: v.GetVolumeId()}); err != nil {
			return nil, err
		}
	}
	return nil, errs.Internal.Errorf("a volume that was just made is not empty")
}

func capability(fstype string) *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: fstype}},
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER},
	}
}

func (a *Adopter) request(pv *corev1.PersistentVolume) *csi.CreateVolumeRequest {
	size := pv.Spec.Capacity[corev1.ResourceStorage]
	params := map[string]string{"csi.storage.k8s.io/pv/name": pv.Name}
	if r := pv.Spec.ClaimRef; r != nil {
		params["csi.storage.k8s.io/pvc/name"], params["csi.storage.k8s.io/pvc/namespace"] = r.Name, r.Namespace
	}
	if a.conf.Pool != "" {
		params["pool"] = a.conf.Pool
	}
	return &csi.CreateVolumeRequest{
		Name: "adopt-" + string(pv.UID), Parameters: params, CapacityRange: &csi.CapacityRange{RequiredBytes: size.Value()},
		VolumeCapabilities: []*csi.VolumeCapability{capability(a.conf.FSType)},
	}
}

// fill stages a volume, copies into it and unstages it; fresh is false, and nothing was copied, if something was in it.
func (a *Adopter) fill(ctx context.Context, id string, from *os.File) (fresh bool, err error) {
	staging := filepath.Join(a.conf.KubeletDir, "plugins", a.conf.Driver, "adopt", id)
	if err := os.MkdirAll(staging, 0o700); err != nil {
		return false, err
	}
	_, err = a.node.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{VolumeId: id, StagingTargetPath: staging, VolumeCapability: capability(a.conf.FSType)})
	if err != nil {
		return false, errors.Join(err, os.Remove(staging))
	}
	defer func() {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		_, uerr := a.node.NodeUnstageVolume(undo, &csi.NodeUnstageVolumeRequest{VolumeId: id, StagingTargetPath: staging})
		if uerr == nil {
			uerr = os.Remove(staging)
		}
		err = errors.Join(err, uerr)
	}()
	to, err := openDirectory(staging)
	if err != nil {
		return false, err
	}
	defer to.Close() //nolint:errcheck // synced below
	names, err := to.Readdirnames(-1)
	if err != nil || len(names) > 1 || len(names) == 1 && names[0] != "lost+found" {
		return false, err
	}
	if err := tree.Copy(ctx, from, to); err != nil {
		return false, fmt.Errorf("copying: %w", err)
	}
	return true, unix.Syncfs(int(to.Fd()))
}

// openDirectory opens a path of which no part is a symbolic link: what is in a volume must not lead elsewhere.
func openDirectory(path string) (*os.File, error) {
	root, err := inroot.Open("/")
	if err != nil {
		return nil, err
	}
	defer root.Close() //nolint:errcheck // O_PATH
	f, err := root.Beneath(filepath.Clean(path)[1:], unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, errs.FailedPrecondition.Errorf("%s: want a directory that no symbolic link leads to: %w", path, err)
	}
	return f, nil
}
