// Package volume is the domain of berth-csi: which volumes, snapshots and groups there are, what was promised to
// them, what happens to them and in which order. It declares what it needs of storage (Backend) and of a durable store
// (Records), and knows neither CSI's messages nor Kubernetes.
//
//	          Create                      Delete
//	(none) ───────────▶ creating ─▶ ready ───────▶ deleting ─▶ (none), storage in the pool's trash
//	             │           ▲ killed: Reconcile goes on      ▲ killed: Reconcile goes on
//	             └─ failed: storage and record removed
//
// The record of a volume is on the disk before the first side effect, so whatever a killed or powered-off node leaves
// has a record that says what was meant; Reconcile then goes on in the direction the record says. Storage without a
// record is an orphan: it is reported, and never removed without an operator's word.
package volume

import (
	"crypto/sha256"
	"encoding/hex"
	"regexp"
	"slices"
	"time"

	"github.com/berth-project/berth/csi/internal/mount"
)

// Phase is where a volume or a snapshot is in its life.
type Phase string

// The phases; see the package comment.
const (
	Creating Phase = "creating"
	Ready    Phase = "ready"
	Deleting Phase = "deleting"
)

// Volume is the record of a volume. Values are replaced, never changed, so one that was handed out stays as it was.
type Volume struct {
	ID       string `json:"id"`
	Name     string `json:"name"` // the user's; only compared and shown
	Pool     string `json:"pool"`
	Number   uint64 `json:"number"`
	Phase    Phase  `json:"phase"`
	Capacity int64  `json:"capacity"`          // bytes, as answered to the user
	Growing  int64  `json:"growing,omitempty"` // the capacity before an expansion that is under way
	// Inherited are the bytes that it shared with its source when it was made, beyond its capacity; Origins the
	// volumes that those may have been written in, the nearest last. Only where storage is charged to who wrote it.
	Inherited int64             `json:"inherited,omitempty"`
	Origins   []string          `json:"origins,omitempty"`
	Block     bool              `json:"block,omitempty"`
	FSType    string            `json:"fsType,omitempty"`
	Thin      bool              `json:"thin,omitempty"`
	Shared    bool              `json:"shared,omitempty"`
	Params    map[string]string `json:"params,omitempty"`  // of the StorageClass, as they were given
	Mutable   map[string]string `json:"mutable,omitempty"` // of the VolumeAttributesClass, merged
	Tuning    bool              `json:"tuning,omitempty"`  // Mutable is being applied
	Source    Source            `json:"source,omitzero"`
	Owner     map[string]string `json:"owner,omitempty"` // claim or pod, for the operator's tables
	Created   time.Time         `json:"created"`
	Used      bool              `json:"used,omitempty"`      // was mounted or attached at least once: never made anew
	Inline    bool              `json:"ephemeral,omitempty"` // lives as long as its pod
	Node      *NodeState        `json:"node,omitempty"`      // nil: not staged
}

// NodeState is how a volume is staged and published, written before it is done. What really is mounted, the kernel
// says.
type NodeState struct {
	Boot     string          `json:"boot"` // the boot it happened in; mounts of another one are gone
	Staging  string          `json:"staging"`
	Use      Use             `json:"use"`
	Targets  map[string]bool `json:"targets,omitempty"` // target path: read-only
	ReadOnly bool            `json:"readOnly,omitempty"`
	// Roots are what was mounted, by which it is known again when its pool does not answer.
	Roots []mount.Point `json:"roots,omitempty"`
}

// Use is how a consumer wants a volume.
type Use struct {
	Block  bool       `json:"block,omitempty"`
	FSType string     `json:"fsType,omitempty"` // "": whatever it is
	Flags  []string   `json:"flags,omitempty"`  // mount flags
	Group  string     `json:"group,omitempty"`  // gid that the root belongs to, decimal
	Access AccessMode `json:"access"`
}

// AccessMode is CSI's access mode, as far as one node can have it.
type AccessMode string

// The access modes of volumes that exist on one node only.
const (
	SingleWriter     AccessMode = "SINGLE_NODE_WRITER"
	SingleReader     AccessMode = "SINGLE_NODE_READER_ONLY"
	SingleNodeOne    AccessMode = "SINGLE_NODE_SINGLE_WRITER"
	SingleNodeShared AccessMode = "SINGLE_NODE_MULTI_WRITER"
)

// AccessModes are all of them.
func AccessModes() []AccessMode {
	return []AccessMode{SingleWriter, SingleReader, SingleNodeOne, SingleNodeShared}
}

// Snapshot is the record of a snapshot.
type Snapshot struct {
	ID      string    `json:"id"`
	Name    string    `json:"name"`
	Pool    string    `json:"pool"`
	Phase   Phase     `json:"phase"`
	Volume  string    `json:"volume"` // the id of its source, which may be gone
	Size    int64     `json:"size"`   // bytes that a volume made from it needs at least
	Held    int64     `json:"held"`   // bytes of the pool that it may hold by itself
	Block   bool      `json:"block,omitempty"`
	FSType  string    `json:"fsType,omitempty"`
	Group   string    `json:"group,omitempty"`
	Origins []string  `json:"origins,omitempty"` // as of a Volume, its own source the last
	Created time.Time `json:"created"`
}

// Group is the record of a group snapshot.
type Group struct {
	ID        string    `json:"id"`
	Name      string    `json:"name"`
	Snapshots []string  `json:"snapshots"`
	Phase     Phase     `json:"phase"`
	Created   time.Time `json:"created"`
}

// The first letter of an id says what it is of.
const (
	volumeKind   = "v"
	snapshotKind = "s"
	groupKind    = "g"
)

var idForm = regexp.MustCompile(`^[vsg][0-9a-f]{32}$`)

// newID derives the id from a name, so that a repeated request finds what an earlier one made. Nothing of the name is
// in it.
func newID(kind, name string) string {
	sum := sha256.Sum256([]byte(kind + "\x00" + name))
	return kind + hex.EncodeToString(sum[:16])
}

// IsID says whether text has the form of an id of ours.
func IsID(text string) bool { return idForm.MatchString(text) }

func (v Volume) spec() Spec {
	missing := int64(0)
	switch {
	case v.Phase == Creating:
		missing = v.Capacity
	case v.Growing != 0:
		missing = v.Capacity - v.Growing
	}
	return Spec{
		Missing: missing, ID: v.ID, Number: v.Number, Capacity: v.Capacity, Block: v.Block, FSType: v.FSType, Thin: v.Thin,
		Source: v.Source, Shared: v.Shared, Tuning: v.Mutable, Fresh: !v.Used && v.Source.None(),
	}
}

// reserved is what the ledger counts for the volume.
func (v Volume) reserved() int64 { return v.Capacity + v.Inherited }

// published are the targets in order.
func (n *NodeState) published() []string {
	if n == nil {
		return nil
	}
	all := make([]string, 0, len(n.Targets))
	for t := range n.Targets {
		all = append(all, t)
	}
	slices.Sort(all)
	return all
}

// Staged says whether the volume is staged on this node.
func (v Volume) Staged() bool { return v.Node != nil }

// Targets are the paths at which the volume is published, in order.
func (v Volume) Targets() []string { return v.Node.published() }
