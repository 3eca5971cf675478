// Package driver is the CSI edge: one file per verb or family of verbs, which checks the form of a request, calls the
// domain and turns its answer into a message (container-storage-interface spec 1.13). It makes no system call and
// keeps no state; error codes, deadlines, panics and the log line are proto/rpc's. Secrets are never looked at.
package driver

import (
	"cmp"
	"strconv"
	"unicode"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"

	"github.com/berth-project/berth/csi/internal/volume"
	"github.com/berth-project/berth/proto/errs"
)

// Info is what the driver says of itself.
type Info struct {
	Name, Version, Node string
	MaxVolumes          int64 // 0: no limit
}

// Driver implements all CSI services. Use [New].
type Driver struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedControllerServer
	csi.UnimplementedGroupControllerServer
	csi.UnimplementedNodeServer
	csi.UnimplementedSnapshotMetadataServer
	info Info
	m    *volume.Manager
}

// New makes the edge of a domain.
func New(m *volume.Manager, info Info) *Driver { return &Driver{info: info, m: m} }

// Register adds all services to a gRPC server.
func (d *Driver) Register(s *grpc.Server) {
	csi.RegisterIdentityServer(s, d)
	csi.RegisterControllerServer(s, d)
	csi.RegisterGroupControllerServer(s, d)
	csi.RegisterNodeServer(s, d)
	csi.RegisterSnapshotMetadataServer(s, d)
}

// TopologyKey is the one key of the driver's topology; its value is the node's name.
func TopologyKey(driver string) string { return driver + "/node" }

func (d *Driver) topology() *csi.Topology {
	return &csi.Topology{Segments: map[string]string{TopologyKey(d.info.Name): d.info.Node}}
}

// reachable says ResourceExhausted for a topology that this node is not in, so that Kubernetes looks elsewhere.
func (d *Driver) reachable(r *csi.TopologyRequirement) error {
	all := r.GetRequisite()
	if len(all) == 0 {
		all = r.GetPreferred()
	}
	if len(all) == 0 {
		return nil
	}
	for _, t := range all {
		if d.here(t) {
			return nil
		}
	}
	return errs.ResourceExhausted.Errorf("accessibility_requirements: this is node %q, none of the topologies allows it", d.info.Node)
}

// here says whether a topology includes this node.
func (d *Driver) here(t *csi.Topology) bool {
	mine := d.topology().GetSegments()
	for k, v := range t.GetSegments() {
		if mine[k] != v {
			return false
		}
	}
	return true
}

// text checks a string of a request against the spec's limits: present, at most 128 bytes, no control characters.
func text(field, s string) error {
	switch {
	case s == "":
		return errs.InvalidArgument.Errorf("%s is missing", field)
	case len(s) > 128:
		return errs.InvalidArgument.Errorf("%s: %d bytes, at most 128 are allowed", field, len(s))
	}
	for _, r := range s {
		if unicode.IsControl(r) || r == unicode.ReplacementChar {
			return errs.InvalidArgument.Errorf("%s: %q has a character that is not allowed", field, s)
		}
	}
	return nil
}

// size checks a map against the spec's limit of 4 KiB.
func size(field string, m map[string]string) error {
	n := 0
	for k, v := range m {
		n += len(k) + len(v)
	}
	if n > 4096 {
		return errs.InvalidArgument.Errorf("%s: %d bytes, at most 4096 are allowed", field, n)
	}
	return nil
}

// capacity checks a range; absent is 0, 0.
func capacity(r *csi.CapacityRange) (required, limit int64, err error) {
	required, limit = r.GetRequiredBytes(), r.GetLimitBytes()
	const most = 1 << 60
	switch {
	case required < 0 || limit < 0:
		err = errs.InvalidArgument.Errorf("capacity_range: %d to %d, a size is not negative", required, limit)
	case required > most || limit > 0 && required > limit:
		err = errs.OutOfRange.Errorf("capacity_range: %d to %d is impossible", required, limit)
	}
	return required, limit, err
}

// use turns a capability into what the domain knows; one that no volume of a single node can have is InvalidArgument.
func use(c *csi.VolumeCapability) (u volume.Use, err error) {
	switch c.GetAccessMode().GetMode() {
	case csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER, csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY,
		csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER, csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER:
		u.Access = volume.AccessMode(c.GetAccessMode().GetMode().String())
	default:
		return u, errs.InvalidArgument.Errorf("volume_capability.access_mode: %s, a local volume is on one node: use ReadWriteOnce or ReadWriteOncePod", c.GetAccessMode().GetMode())
	}
	switch {
	case c.GetBlock() != nil:
		u.Block = true
	case c.GetMount() != nil:
		m := c.GetMount()
		u.FSType, u.Flags, u.Group = m.GetFsType(), m.GetMountFlags(), m.GetVolumeMountGroup()
		if len(u.Flags) == 0 {
			u.Flags = nil
		}
	default:
		return u, errs.InvalidArgument.Errorf("volume_capability.access_type is missing: want block or mount")
	}
	return u, volume.CheckFlags(u.Flags)
}

// uses checks a list of capabilities, which must agree about what the volume is.
func uses(all []*csi.VolumeCapability) (block bool, fstype string, err error) {
	if len(all) == 0 {
		return false, "", errs.InvalidArgument.Errorf("volume_capabilities are missing")
	}
	for i, c := range all {
		u, err := use(c)
		if err != nil {
			return false, "", err
		}
		if i > 0 && (u.Block != block || u.FSType != "" && fstype != "" && u.FSType != fstype) {
			return false, "", errs.InvalidArgument.Errorf("volume_capabilities: they contradict each other, a volume is raw block or has one file system")
		}
		block, fstype = u.Block, cmp.Or(fstype, u.FSType)
	}
	return block, fstype, nil
}

// page cuts one page out of a list; the token is the number of the first entry.
func page[T any](all []T, most int32, token string) ([]T, string, error) {
	from := 0
	if token != "" {
		n, err := strconv.Atoi(token)
		if err != nil || n < 0 || n > len(all) {
			return nil, "", errs.Aborted.Errorf("starting_token %.40q is not one of ours, or the list has changed: start anew", token)
		}
		from = n
	}
	if most < 0 {
		return nil, "", errs.InvalidArgument.Errorf("max_entries: %d", most)
	}
	all = all[from:]
	if most == 0 || int(most) >= len(all) {
		return all, "", nil
	}
	return all[:most], strconv.Itoa(from + int(most)), nil
}
