package volume

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/csi/internal/mount"
	"github.com/berth-project/berth/internal/failpoint"
	"github.com/berth-project/berth/proto/errs"
)

var (
	publishAfterIntent   = failpoint.New("csi.publish.after_intent")
	publishAfterMake     = failpoint.New("csi.publish.after_make")
	publishAfterAttach   = failpoint.New("csi.publish.after_attach")
	unpublishAfterDetach = failpoint.New("csi.unpublish.after_detach")
	unpublishAfterRemove = failpoint.New("csi.unpublish.after_remove")
	unpublishAfterForget = failpoint.New("csi.unpublish.after_forget")
)

// PublishRequest is where a staged volume shall be seen.
type PublishRequest struct {
	Staging, Target string
	ReadOnly        bool
	Use             Use
}

// Publish binds a staged volume to a target path, which it makes. It is idempotent; a target that has the volume in
// another way is AlreadyExists.
func (m *Manager) Publish(ctx context.Context, id string, r PublishRequest) error {
	end, err := m.begin(id, "NodePublishVolume")
	if err != nil {
		return err
	}
	defer end()
	v, p, err := m.volume(id)
	if err != nil {
		return err
	}
	if err := errors.Join(fits(v, r.Use), publishable(v, r)); err != nil {
		return err
	}
	at, err := m.open(r.Target)
	if err != nil {
		return err
	}
	defer at.close()
	// 1. The intent.
	readOnly := r.ReadOnly || v.Node.ReadOnly
	if _, there := v.Node.Targets[r.Target]; !there {
		node := *v.Node
		node.Targets = maps.Clone(node.Targets)
		if node.Targets == nil {
			node.Targets = map[string]bool{}
		}
		node.Targets[r.Target] = readOnly
		v.Node = &node
		if err := m.keep(v, false); err != nil {
			return err
		}
	}
	// 2. The target, and the mount on it.
	if err := errors.Join(publishAfterIntent.Hit(), at.make(!v.Block), publishAfterMake.Hit()); err != nil {
		return err
	}
	return m.bind(ctx, p, v, at, r)
}

// publishable says whether a volume as it is staged can be published so.
func publishable(v Volume, r PublishRequest) error {
	if !v.Staged() || v.Node.Staging != r.Staging {
		return errs.FailedPrecondition.Errorf("volume %s is not staged at %q: NodeStageVolume must come first", v.ID, r.Staging)
	}
	readOnly, there := v.Node.Targets[r.Target]
	if there && readOnly != (r.ReadOnly || v.Node.ReadOnly) {
		return errs.AlreadyExists.Errorf("target_path: volume %s is published at %s with readonly=%v", v.ID, r.Target, readOnly)
	}
	if !there && len(v.Node.Targets) > 0 && (r.Use.Access == SingleNodeOne || v.Node.Use.Access == SingleNodeOne) {
		return errs.FailedPrecondition.Errorf("volume %s is published at %v and its access mode is %s: one target only", v.ID, v.Targets(), SingleNodeOne)
	}
	return nil
}

func (m *Manager) bind(ctx context.Context, p *Pool, v Volume, at *place, r PublishRequest) error {
	f, now, err := at.at()
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // O_PATH
	if now.Mounted {
		ours, err := p.Backend.Holds(ctx, m.spec(v), now)
		if err == nil && !ours {
			err = errs.FailedPrecondition.Errorf("target_path %s is a mount of something else", r.Target)
		}
		return err
	}
	if now.Dir == v.Block {
		return errs.InvalidArgument.Errorf("target_path %s: a directory is wanted for a file system, a file for raw block", r.Target)
	}
	tree, err := m.tree(ctx, p, v, r)
	if err != nil {
		return err
	}
	defer tree.Close() //nolint:errcheck // attached, or gone with it
	set, err := mount.Flags(r.Use.Flags)
	if err != nil {
		return err
	}
	if r.ReadOnly {
		set |= unix.MOUNT_ATTR_RDONLY
	}
	if v.Block { // nodev would make the device useless; what it may do, the device itself says
		set &^= unix.MOUNT_ATTR_NODEV
	}
	if err := mount.SetAttributes(tree, set); err != nil { // not attached with fewer
		return err
	}
	return errors.Join(m.attach(v, tree, f), publishAfterAttach.Hit())
}

// tree is a clone of the staging mount, or of the device's node.
func (m *Manager) tree(ctx context.Context, p *Pool, v Volume, r PublishRequest) (*os.File, error) {
	if v.Block {
		dev, err := p.Backend.Device(ctx, m.spec(v), r.ReadOnly || v.Node.ReadOnly)
		if err != nil {
			return nil, err
		}
		node, err := os.OpenFile(dev, unix.O_PATH|unix.O_NOFOLLOW, 0)
		if err != nil {
			return nil, err
		}
		tree, err := mount.Clone(node, "")
		return tree, errors.Join(err, node.Close())
	}
	staged, err := m.mounted(ctx, p, v)
	if err != nil {
		return nil, err
	}
	if staged == nil {
		return nil, errs.FailedPrecondition.Errorf("volume %s is not mounted at %s any more: NodeUnstageVolume and NodeStageVolume must come first", v.ID, v.Node.Staging)
	}
	tree, err := mount.Clone(staged, "")
	return tree, errors.Join(err, staged.Close())
}

// Unpublish ends what Publish began and removes the target. A target that is not there is fine.
func (m *Manager) Unpublish(ctx context.Context, id, target string) error {
	end, err := m.begin(id, "NodeUnpublishVolume")
	if err != nil {
		return err
	}
	defer end()
	v, _, err := m.volume(id)
	if err != nil && errs.Of(err) != errs.Unavailable { // what is mounted of a pool that is gone is unmounted all the same
		return m.absent(target, err)
	}
	at, err := m.open(target)
	if err == nil {
		defer at.close()
		if err = errors.Join(m.detach(ctx, v, at), unpublishAfterDetach.Hit()); err == nil {
			err = errors.Join(at.remove(), unpublishAfterRemove.Hit())
		}
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if !v.Staged() {
		return nil
	}
	if _, there := v.Node.Targets[target]; !there {
		return nil
	}
	node := *v.Node
	node.Targets = maps.Clone(node.Targets)
	delete(node.Targets, target)
	v.Node = &node
	return errors.Join(m.keep(v, false), unpublishAfterForget.Hit())
}

// absent: an unknown volume cannot be at a target that is not there; anything that is there is not ours to remove.
func (m *Manager) absent(target string, unknown error) error {
	f, _, err := m.look(target)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w (%w)", unknown, err)
	}
	return errors.Join(unknown, f.Close())
}
