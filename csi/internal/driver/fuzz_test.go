package driver

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/berth-project/berth/csi/internal/volume"
	"github.com/berth-project/berth/proto/errs"
)

// shelf is a backend without storage: it counts what would have been done, and insists on ids of ours.
type shelf struct {
	volume.Backend
	t    *testing.T
	done int
}

func (s *shelf) touch(id string) error {
	if s.done++; !volume.IsID(id) {
		s.t.Errorf("the backend was given the id %q", id)
	}
	return nil
}

func (s *shelf) Traits() volume.Traits {
	return volume.Traits{Block: true, FSTypes: []string{"ext4"}, MinSize: 1 << 20}
}

func (s *shelf) CheckTuning(v volume.Spec) error {
	if len(v.Tuning) > 0 {
		return errs.InvalidArgument.Errorf("mutable_parameters: there are none")
	}
	return nil
}

func (s *shelf) Ensure(_ context.Context, v volume.Spec) error  { return s.touch(v.ID) }
func (s *shelf) Remove(_ context.Context, v volume.Spec) error  { return s.touch(v.ID) }
func (s *shelf) Release(_ context.Context, v volume.Spec) error { return s.touch(v.ID) }
func (s *shelf) Resize(_ context.Context, v volume.Spec) error  { return s.touch(v.ID) }
func (s *shelf) Medium() string                                 { return "" }

func (s *shelf) Space(context.Context, []volume.Spec) (volume.Space, error) {
	return volume.Space{Total: 1 << 40, Free: 1 << 40, InodesFree: -1}, nil
}
func (s *shelf) Footprint(context.Context, volume.Spec) (int64, error) { return 0, nil }
func (s *shelf) Snapshot(_ context.Context, all []volume.SnapshotSpec) error {
	return s.touch(all[0].ID)
}

func (s *shelf) RemoveSnapshot(_ context.Context, id string) error { return s.touch(id) }

func (s *shelf) Changed(context.Context, string, string) ([]volume.Range, error) { return nil, nil }

func (s *shelf) Exists(_ context.Context, id string) (bool, error)                  { return true, s.touch(id) }
func (s *shelf) Inventory(context.Context) (volumes, snapshots []string, err error) { return }

// memory is a journal that forgets.
type memory struct{}

func (memory) Put(string, any, bool) error                   { return nil }
func (memory) Delete(string, bool) error                     { return nil }
func (memory) Each(string, func(string, []byte) error) error { return nil }

// FuzzRequests: whatever a request says, the answer has a class of CSI's, a message that says something, and of what is
// refused as impossible nothing was done.
func FuzzRequests(f *testing.F) {
	for verb := range uint8(12) {
		f.Add(verb, "pvc-1", "v00000000000000000000000000000000", "pool", "p", int64(1<<30), int64(0))
		f.Add(verb, "../../etc", "s00000000000000000000000000000000", "../x", "\x00", int64(-1), int64(1))
		f.Add(verb, strings.Repeat("x", 129), "a\x00b", "csi.storage.k8s.io/fstype", "ext4", int64(1)<<62, int64(5))
		f.Add(verb, "", "", "csi.storage.k8s.io/pvc/name", strings.Repeat("y", 5000), int64(4096), int64(4095))
	}
	f.Fuzz(func(t *testing.T, verb uint8, name, id, key, value string, required, limit int64) {
		s := &shelf{t: t}
		m, err := volume.New(volume.Config{
			KubeletDir: t.TempDir(), Boot: "b", Log: slog.New(slog.DiscardHandler),
			Pools: []volume.Pool{{Name: "p", Kind: "loop", Backend: s, Overcommit: 1, Default: true, Inline: true}},
		}, memory{})
		if err != nil {
			t.Fatal(err)
		}
		d := New(m, Info{Name: "d", Node: "n"})
		err = request(t.Context(), d, verb, fuzzed{name, id, map[string]string{key: value}, required, limit})
		refused := []errs.Class{errs.InvalidArgument, errs.OutOfRange, errs.NotFound, errs.AlreadyExists}
		switch class := errs.Of(err); {
		case err == nil, class == errs.Aborted, class == errs.ResourceExhausted, class == errs.FailedPrecondition, class == errs.Unavailable:
		case !slices.Contains(refused, class):
			t.Errorf("verb %d: %s: %v", verb, class, err)
		case s.done > 0:
			t.Errorf("verb %d was refused (%v) after %d steps", verb, err, s.done)
		}
		if err != nil && len(err.Error()) < 8 {
			t.Errorf("verb %d: the message is %q", verb, err)
		}
	})
}

type fuzzed struct {
	name, id        string
	params          map[string]string
	required, limit int64
}

// request calls one verb.
func request(ctx context.Context, d *Driver, verb uint8, z fuzzed) (err error) {
	c := &csi.VolumeCapability{
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: "", MountFlags: []string{z.name}}},
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_Mode(z.limit % 9)}, //nolint:gosec // small
	}
	size := &csi.CapacityRange{RequiredBytes: z.required, LimitBytes: z.limit}
	switch verb % 12 {
	case 0:
		_, err = d.CreateVolume(ctx, &csi.CreateVolumeRequest{Name: z.name, Parameters: z.params, CapacityRange: size, VolumeCapabilities: []*csi.VolumeCapability{c}})
	case 1:
		c.GetMount().MountFlags, c.AccessMode.Mode = nil, csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER
		_, err = d.CreateVolume(ctx, &csi.CreateVolumeRequest{
			Name: z.name, MutableParameters: z.params, CapacityRange: size, VolumeCapabilities: []*csi.VolumeCapability{c},
			VolumeContentSource: &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: z.id}}},
		})
	case 2:
		_, err = d.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: z.id})
	case 3:
		_, err = d.ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{VolumeId: z.id, CapacityRange: size})
	case 4:
		_, err = d.ControllerModifyVolume(ctx, &csi.ControllerModifyVolumeRequest{VolumeId: z.id, MutableParameters: z.params})
	case 5:
		_, err = d.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{Name: z.name, SourceVolumeId: z.id, Parameters: z.params})
	case 6:
		_, err = d.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: z.id})
	case 7:
		_, err = d.CreateVolumeGroupSnapshot(ctx, &csi.CreateVolumeGroupSnapshotRequest{Name: z.name, SourceVolumeIds: []string{z.id, z.name}, Parameters: z.params})
	case 8:
		_, err = d.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{VolumeId: z.id, StagingTargetPath: z.name, VolumeCapability: c, VolumeContext: z.params})
	case 9:
		_, err = d.NodePublishVolume(ctx, &csi.NodePublishVolumeRequest{VolumeId: z.id, StagingTargetPath: z.name, TargetPath: z.name, VolumeCapability: c, VolumeContext: z.params})
	case 10:
		_, err = d.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: z.id, TargetPath: z.name})
	case 11:
		_, err = d.ListVolumes(ctx, &csi.ListVolumesRequest{StartingToken: z.name, MaxEntries: int32(z.required % 1000)}) //nolint:gosec // small
	}
	return err
}
