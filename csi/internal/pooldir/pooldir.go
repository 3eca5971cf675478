// Package pooldir is what backends have in common whose pool is a directory of one file system: how full it is, what is
// in it, whether it is well, and what of it must be tried out before it is trusted. What a volume is, the backend says;
// only volumes that are directories themselves are here as well, see [Trees].
package pooldir

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"

	"github.com/berth-project/berth/csi/internal/mount"
	"github.com/berth-project/berth/csi/internal/pool"
	"github.com/berth-project/berth/csi/internal/volume"
	"github.com/berth-project/berth/proto/errs"
)

// Space is that of the pool's file system; what of the promises has none yet, the backend says, and is asked first.
func Space(p *pool.Pool, unbacked func(d *pool.Dir) (int64, error)) (volume.Space, error) {
	d, err := p.Dir()
	if err != nil {
		return volume.Space{}, err
	}
	defer d.Close() //nolint:errcheck // O_PATH
	waiting, err := unbacked(d)
	if err != nil {
		return volume.Space{}, err
	}
	s, err := d.Space()
	return volume.Space{Total: s.Total, Free: s.Free, InodesFree: s.InodesFree, ReadOnly: s.ReadOnly, Unbacked: waiting}, err
}

// Medium is the number of the pool's file system, major:minor.
func Medium(p *pool.Pool) (string, error) {
	d, err := p.Dir()
	if err != nil {
		return "", err
	}
	defer d.Close() //nolint:errcheck // O_PATH
	f, err := d.Sub(pool.Volumes)
	if err != nil {
		return "", err
	}
	medium, err := mount.Device(f)
	return medium, errors.Join(err, f.Close())
}

// Inventory lists the ids of what is complete or being made, in order; ext is what its names have behind the id. What is being
// made has a record, as what is complete has, or it is an orphan too.
func Inventory(p *pool.Pool, ext string) (volumes, snapshots []string, err error) {
	d, err := p.Dir()
	if err != nil {
		return nil, nil, err
	}
	defer d.Close() //nolint:errcheck // O_PATH
	for _, dir := range []string{pool.Volumes, pool.Snapshots, pool.Building} {
		names, nerr := d.Names(dir)
		err = errors.Join(err, nerr)
		for _, n := range names {
			switch id := strings.TrimSuffix(n, ext); {
			case dir == pool.Building && !volume.IsID(id): // a probe
			case dir == pool.Snapshots || dir == pool.Building && strings.HasPrefix(id, "s"):
				snapshots = append(snapshots, id)
			default:
				volumes = append(volumes, id)
			}
		}
	}
	slices.Sort(volumes)
	slices.Sort(snapshots)
	return slices.Compact(volumes), slices.Compact(snapshots), err
}

// Purge calls erase with the name of everything in the trash until ctx ends, and says how much is left; erase says
// whether something stays for the next time.
func Purge(ctx context.Context, p *pool.Pool, erase func(d *pool.Dir, name string) (stays bool, err error)) (left int, err error) {
	d, err := p.Dir()
	if err != nil {
		return 0, err
	}
	defer d.Close() //nolint:errcheck // O_PATH
	names, err := d.Names(pool.Trash)
	if err != nil {
		return 0, err
	}
	for i, name := range names {
		if ctx.Err() != nil {
			return len(names) - i + left, err
		}
		stays, perr := erase(d, Path(pool.Trash, name))
		if stays || perr != nil {
			left++
			err = errors.Join(err, perr)
		}
	}
	return left, err
}

// Unwell says what is wrong with a pool that answers the question for its space so; nothing: nil.
func Unwell(p *pool.Pool, s volume.Space, err error) []volume.Condition {
	if err != nil {
		return []volume.Condition{{Reason: "PoolUnreachable", Message: err.Error(), Fatal: true}}
	}
	if s.ReadOnly {
		return []volume.Condition{{Reason: "PoolReadOnly", Message: "the file system of the pool at " + p.Path() + " is read-only", Fatal: true}}
	}
	return nil
}

// Proof is something that is tried out once. On a full file system it cannot be: what is in the pool is served all the
// same, and may be deleted, and who makes something new tries again. The zero value has not been tried.
type Proof struct {
	mu   sync.Mutex // held while it is tried: nobody goes on before
	done bool
}

// Once tries, unless it was tried with success.
func (p *Proof) Once(try func() error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.done {
		return nil
	}
	if err := try(); err != nil {
		return pool.Full(err)
	}
	p.done = true
	return nil
}

// AtStart is Once that a full pool does not fail.
func (p *Proof) AtStart(try func() error) error {
	err := p.Once(try)
	if errs.Of(err) == errs.ResourceExhausted {
		return nil
	}
	return err
}
