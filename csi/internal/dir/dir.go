// Package dir is the backend whose volumes are plain directories of an ext4 or xfs that is mounted with project quota: the
// least there can be between a tenant and the disk. The limit is the project's that a volume's directory has and that
// what is made in it inherits.
//
// It stops accidents, not an enemy: whoever owns a file may give it to another project (FS_IOC_FSSETXATTR needs no
// capability), unless its user namespace or a seccomp filter keeps it from that. Tenants who are not trusted get
// volumes of the loop backend.
//
// There are no shared blocks on ext4, so a snapshot and a clone are copies, of volumes at rest.
package dir

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/csi/internal/pool"
	"github.com/berth-project/berth/csi/internal/pooldir"
	"github.com/berth-project/berth/csi/internal/tree"
	"github.com/berth-project/berth/csi/internal/volume"
	"github.com/berth-project/berth/internal/failpoint"
	"github.com/berth-project/berth/proto/errs"
)

var (
	afterProject = failpoint.New("csi.dir.after_project")
	afterLimit   = failpoint.New("csi.dir.after_limit")
	afterRename  = failpoint.New("csi.dir.after_rename")
	afterTrash   = failpoint.New("csi.dir.after_trash")
)

// Backend is one pool of directories. Use [New].
type Backend struct {
	pooldir.Trees
	pool   *pool.Pool
	medium string
	proof  pooldir.Proof // that the quota holds
}

var _ volume.Backend = (*Backend)(nil)

// New proves that the pool's file system enforces a project's limit. One that does not is refused.
func New(p *pool.Pool) (*Backend, error) {
	b := &Backend{pool: p, Trees: pooldir.Trees{Pool: p, Kind: "directory"}}
	d, err := p.Dir()
	if err != nil {
		return nil, err
	}
	defer d.Close() //nolint:errcheck // O_PATH
	s, err := d.Space()
	if err != nil {
		return nil, err
	}
	switch s.FSType {
	case unix.EXT4_SUPER_MAGIC:
		b.FSType = "ext4"
	case unix.XFS_SUPER_MAGIC:
		b.FSType = "xfs"
	default:
		return nil, errs.FailedPrecondition.Errorf("%s is neither on ext4 nor on xfs: use the btrfs or the loop backend there", p.Path())
	}
	if b.medium, err = pooldir.Medium(p); err != nil {
		return nil, err
	}
	if err := b.proof.AtStart(func() error { return b.try(d) }); err != nil {
		return nil, err
	}
	return b, nil
}

const room = 16 << 20 // bytes that must be free for the proof

// try makes a volume of 1 MiB and writes until it is stopped. xfs says ENOSPC there, as a full file system does, so
// there must be room.
func (b *Backend) try(d *pool.Dir) (err error) {
	if s, err := d.Space(); err != nil || s.Free < room {
		return errors.Join(err, errs.ResourceExhausted.Errorf("%s has no room to try its quota out", b.pool.Path()))
	}
	const name = pool.Building + "/.probe"
	if err := d.Discard(name); err != nil {
		return err
	}
	f, err := b.directory(d, name)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, limit(f, probe, 0), f.Close(), d.Discard(name))
	}()
	if err := errors.Join(assign(f, probe), limit(f, probe, 1<<20)); err != nil {
		return errs.FailedPrecondition.Errorf("%s has no project quota: make the file system with it (mkfs.ext4 -O quota,project) and mount it with prjquota: %w", b.pool.Path(), err)
	}
	file, err := d.Beneath(name+"/file", unix.O_CREAT|unix.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	chunk := make([]byte, 256<<10)
	err = asTenant(func() (err error) {
		for range 16 {
			if _, err = file.Write(chunk); err != nil {
				return err
			}
		}
		return nil
	})
	if err = errors.Join(err, file.Close()); errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.ENOSPC) {
		return nil
	}
	if err != nil {
		return err
	}
	return errs.FailedPrecondition.Errorf("%s: 4 MiB could be written below a limit of 1 MiB: its project quota is counted and not enforced, mount it with prjquota", b.pool.Path())
}

// directory makes a directory and opens it.
func (b *Backend) directory(d *pool.Dir, name string) (*os.File, error) {
	if err := unix.Mkdirat(d.Fd(), name, 0o755); err != nil {
		return nil, &os.PathError{Op: "mkdir", Path: name, Err: err}
	}
	return d.Sub(name)
}

// Traits implements volume.Store.
func (b *Backend) Traits() volume.Traits {
	return volume.Traits{FSTypes: []string{b.FSType}, MinSize: 1 << 20, Granularity: 4096, Limited: true}
}

// Ensure implements volume.Store.
func (b *Backend) Ensure(ctx context.Context, v volume.Spec) error {
	d, err := b.pool.Dir()
	if err != nil {
		return err
	}
	defer d.Close() //nolint:errcheck // O_PATH
	if there, err := d.Exists(pooldir.Path(pool.Volumes, v.ID)); there || err != nil {
		return err
	}
	if err := b.proof.Once(func() error { return b.try(d) }); err != nil {
		return err
	}
	building := pooldir.Path(pool.Building, v.ID)
	if err := d.Discard(building); err != nil { // a killed Ensure's
		return pool.Full(err)
	}
	if err := b.build(ctx, d, v); err != nil {
		return errors.Join(pool.Full(err), d.Discard(building))
	}
	if err := d.Rename(building, pooldir.Path(pool.Volumes, v.ID), false); err != nil {
		return pool.Full(err)
	}
	return afterRename.Hit()
}

func (b *Backend) build(ctx context.Context, d *pool.Dir, v volume.Spec) error {
	f, err := b.directory(d, pooldir.Path(pool.Building, v.ID))
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // nothing is written to a directory
	id := project(v.Number)
	if bytes, inodes, err := charged(f, id); err != nil || bytes > 0 || inodes > 0 {
		return errors.Join(err, errs.Internal.Errorf("project %d, which volume %s should get, is somebody's already: %d bytes, %d inodes", id, v.ID, bytes, inodes))
	}
	if err := errors.Join(assign(f, id), afterProject.Hit(), limit(f, id, v.Capacity+v.Held), afterLimit.Hit()); err != nil {
		return err
	}
	if v.Source.None() {
		return nil
	}
	name := pooldir.Source(v.Source)
	source, err := d.Sub(name)
	if err != nil {
		return errs.NotFound.Errorf("the source's directory %s: %w", name, err)
	}
	return errors.Join(tree.Copy(ctx, source, f), unix.Syncfs(int(f.Fd())), source.Close())
}

// Commit implements volume.Store.
func (b *Backend) Commit(_ context.Context, v volume.Spec) error {
	d, f, err := b.Open(v.ID)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(f.Fd())), f.Close(), d.Close())
}

// Remove implements volume.Store.
func (b *Backend) Remove(ctx context.Context, v volume.Spec) error {
	if err := b.Release(ctx, v); err != nil {
		return err
	}
	d, err := b.pool.Dir()
	if err != nil {
		return err
	}
	defer d.Close() //nolint:errcheck // O_PATH
	for _, dir := range []string{pool.Volumes, pool.Building} {
		if err := b.discard(d, pooldir.Path(dir, v.ID), project(v.Number)); err != nil {
			return pool.Full(err)
		}
	}
	return afterTrash.Hit()
}

// discard moves a volume's directory into the trash, whatever its tenant has done to it, and takes the limit away.
func (b *Backend) discard(d *pool.Dir, name string, id uint32) error {
	f, err := d.Sub(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := errors.Join(tree.Writable(f), d.Remove(name)); err != nil {
		return errors.Join(err, f.Close())
	}
	return errors.Join(limit(f, id, 0), f.Close())
}

// Resize implements volume.Store.
func (b *Backend) Resize(_ context.Context, v volume.Spec) error {
	d, f, err := b.Open(v.ID)
	if err != nil {
		return err
	}
	return errors.Join(limit(f, project(v.Number), v.Capacity+v.Held), f.Close(), d.Close())
}

// Footprint implements volume.Store: a copy of it takes what it takes.
func (b *Backend) Footprint(_ context.Context, v volume.Spec) (int64, error) {
	d, f, err := b.Open(v.ID)
	if err != nil {
		return 0, err
	}
	if err := unix.Syncfs(int(f.Fd())); err != nil { // extents are charged when they are written back
		return 0, errors.Join(err, f.Close(), d.Close())
	}
	n, _, err := charged(f, project(v.Number))
	return n, errors.Join(err, f.Close(), d.Close())
}

// CheckTuning implements volume.Tuner: there is nothing to set.
func (b *Backend) CheckTuning(v volume.Spec) error {
	for k := range v.Tuning {
		return errs.InvalidArgument.Errorf("mutable_parameters.%s is not known here: a pool of directories has no settings", k)
	}
	return nil
}

// Tune implements volume.Tuner.
func (b *Backend) Tune(context.Context, volume.Spec) error { return nil }

func named(v volume.Spec, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("volume %s: %w", v.ID, err)
}
