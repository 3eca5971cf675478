package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/csi/internal/mount"
	"github.com/berth-project/berth/internal/failpoint"
	"github.com/berth-project/berth/proto/errs"
)

var (
	stageAfterIntent   = failpoint.New("csi.stage.after_intent")
	stageAfterMount    = failpoint.New("csi.stage.after_mount")
	stageAfterAttach   = failpoint.New("csi.stage.after_attach")
	unstageAfterDetach = failpoint.New("csi.unstage.after_detach")
	unstageAfterFree   = failpoint.New("csi.unstage.after_release")
	unstageAfterForget = failpoint.New("csi.unstage.after_forget")
)

// Stage mounts a volume at staging, or attaches its device. It is idempotent; a volume that is staged otherwise is
// AlreadyExists.
func (m *Manager) Stage(ctx context.Context, id, staging string, use Use) error {
	end, err := m.begin(id, "NodeStageVolume")
	if err != nil {
		return err
	}
	defer end()
	v, p, err := m.volume(id)
	if err != nil {
		return err
	}
	if err := fits(v, use); err != nil {
		return err
	}
	at, err := m.open(staging)
	if err != nil {
		return err
	}
	defer at.close()
	if v.Staged() && (v.Node.Staging != staging || !reflect.DeepEqual(v.Node.Use, use)) {
		return errs.AlreadyExists.Errorf("volume %s is staged at %s for another use: unstage it first", id, v.Node.Staging)
	}
	// 1. The intent. From here on the volume is one that was used, which must be on the disk before it can be.
	if !v.Staged() {
		first := !v.Used
		if first {
			if err := p.Backend.Commit(ctx, m.spec(v)); err != nil {
				return err
			}
		}
		v.Used, v.Node = true, &NodeState{Boot: m.conf.Boot, Staging: staging, Use: use, ReadOnly: use.Access == SingleReader}
		if err := m.keep(v, first); err != nil {
			return err
		}
	}
	if err := stageAfterIntent.Hit(); err != nil {
		return err
	}
	if use.Block {
		_, err := p.Backend.Device(ctx, m.spec(v), v.Node.ReadOnly)
		return errors.Join(err, stageAfterAttach.Hit())
	}
	// 2. The mount.
	return m.stageMount(ctx, p, v, at)
}

// fits says whether a volume can be used so.
func fits(v Volume, use Use) error {
	if use.Block != v.Block {
		return errs.FailedPrecondition.Errorf("volume_capability: volume %s is %s", v.ID, kindName(v.Block, v.FSType))
	}
	if use.FSType != "" && use.FSType != v.FSType && !v.Block {
		return errs.InvalidArgument.Errorf("fs_type: %q, volume %s has %s", use.FSType, v.ID, v.FSType)
	}
	if _, err := mount.Flags(use.Flags); err != nil {
		return err
	}
	_, err := gid(use.Group)
	return err
}

func (m *Manager) stageMount(ctx context.Context, p *Pool, v Volume, at *place) error {
	f, now, err := at.at()
	if err != nil {
		return fmt.Errorf("staging_target_path: %w", err)
	}
	defer f.Close() //nolint:errcheck // O_PATH
	if now.Mounted {
		ours, err := p.Backend.Holds(ctx, m.spec(v), now)
		if err == nil && !ours {
			err = errs.FailedPrecondition.Errorf("staging_target_path %s is a mount of something else", at.path)
		}
		return err
	}
	if !now.Dir {
		return errs.InvalidArgument.Errorf("staging_target_path %s is no directory", at.path)
	}
	use := v.Node.Use
	tree, err := p.Backend.Mount(ctx, m.spec(v), v.Node.ReadOnly)
	if err != nil {
		return err
	}
	defer tree.Close() //nolint:errcheck // attached, or gone with it
	set, err := mount.Flags(use.Flags)
	if err != nil {
		return err
	}
	if v.Node.ReadOnly {
		set |= unix.MOUNT_ATTR_RDONLY
	}
	err = errors.Join(mount.SetAttributes(tree, mount.Safe|set&^unix.MOUNT_ATTR_RDONLY), own(tree, use.Group, v.Node.ReadOnly),
		mount.SetAttributes(tree, set&unix.MOUNT_ATTR_RDONLY), stageAfterMount.Hit())
	if err != nil {
		return err
	}
	return errors.Join(m.attach(v, tree, f), stageAfterAttach.Hit())
}

// attach shows a tree at a place, and records what was mounted.
func (m *Manager) attach(v Volume, tree, at *os.File) error {
	root, err := mount.At(tree)
	if err != nil {
		return err
	}
	if err := mount.Attach(tree, at); err != nil {
		return err
	}
	if v.Node == nil || slices.ContainsFunc(v.Node.Roots, root.Same) {
		return nil
	}
	node := *v.Node
	node.Roots = append(slices.Clone(node.Roots), root)
	v.Node = &node
	return m.keep(v, false)
}

// holds says whether what is at a place is the volume's. The backend knows; where it does not answer, because the pool or the
// storage is gone, it is what was mounted.
func (m *Manager) holds(ctx context.Context, v Volume, now mount.Point) (bool, error) {
	p, err := m.pool(v.Pool)
	if err == nil {
		var ours bool
		if ours, err = p.Backend.Holds(ctx, m.spec(v), now); err == nil {
			return ours, nil
		}
	}
	if v.Node != nil && slices.ContainsFunc(v.Node.Roots, now.Same) {
		return true, nil
	}
	return false, err
}

// own gives the root directory to a group, once: the group stays on all that is made below (setgid), so that nothing
// has to be walked.
func own(tree *os.File, group string, readOnly bool) error {
	n, err := gid(group)
	if err != nil || n < 0 || readOnly {
		return err
	}
	fd, err := unix.Openat(int(tree.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("the volume's root: %w", err)
	}
	defer unix.Close(fd) //nolint:errcheck // nothing written
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("the volume's root: %w", err)
	}
	if st.Gid == uint32(n) && st.Mode&0o2070 == 0o2070 { //nolint:gosec // 31 bits
		return nil
	}
	if err := errors.Join(unix.Fchown(fd, -1, n), unix.Fchmod(fd, st.Mode&0o7777|0o2070)); err != nil {
		return fmt.Errorf("the volume's root for group %d: %w", n, err)
	}
	return nil
}

// Unstage ends what Stage began. A volume that does not exist or is not staged is fine, but for one thing: a mount at
// staging that is not the volume's is left alone, and FailedPrecondition.
func (m *Manager) Unstage(ctx context.Context, id, staging string) error {
	end, err := m.begin(id, "NodeUnstageVolume")
	if err != nil {
		return err
	}
	defer end()
	v, p, err := m.volume(id)
	if err != nil && errs.Of(err) != errs.Unavailable {
		return err
	}
	if v.Staged() && len(v.Node.Targets) > 0 {
		return errs.FailedPrecondition.Errorf("volume %s is still published at %v: NodeUnpublishVolume must come first", id, v.Targets())
	}
	at, err := m.open(staging)
	if err == nil {
		defer at.close()
		err = m.detach(ctx, v, at)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := unstageAfterDetach.Hit(); err != nil {
		return err
	}
	if !v.Staged() || v.Node.Staging != staging {
		return nil
	}
	if err := errors.Join(m.release(ctx, p, v), unstageAfterFree.Hit()); err != nil {
		return err
	}
	v.Node = nil
	return errors.Join(m.keep(v, false), unstageAfterForget.Hit())
}

// release ends what a volume is attached by. Of a pool that is gone nothing can be asked: its mounts are gone too by now, and
// a device that is left is found again by whoever attaches or deletes the volume when the pool is back.
func (m *Manager) release(ctx context.Context, p *Pool, v Volume) error {
	var err error
	if p != nil {
		err = p.Backend.Release(ctx, m.spec(v))
	}
	if p == nil || errs.Of(err) == errs.Unavailable {
		m.log.Warn("a volume is let go of, its pool is not there", "volume", v.ID, "pool", v.Pool, "error", err)
		return nil
	}
	return err
}

// detach unmounts all that is the volume's at a place; nothing there is fine.
func (m *Manager) detach(ctx context.Context, v Volume, at *place) error {
	for {
		f, now, err := at.at()
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := f.Close(); err != nil || !now.Mounted {
			return err
		}
		ours, err := m.holds(ctx, v, now)
		if err == nil && !ours {
			err = errs.FailedPrecondition.Errorf("path %s is a mount of something else than volume %s: it is left alone", at.path, v.ID)
		}
		if err != nil {
			return err
		}
		if err := mount.Detach(at.parent, at.base); err != nil {
			return err
		}
	}
}
