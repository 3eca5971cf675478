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

	"github.com/berth-project/berth/csi/internal/pool"
	"github.com/berth-project/berth/csi/internal/volume"
	"github.com/berth-project/berth/proto/errs"
)

// Space is that of the pool's file system; what of the promises has none yet, the backend says.
func Space(p *pool.Pool, unbacked func(all []volume.Spec) (int64, error)) (volume.Space, error) {
	d, err := p.Dir()
	if err != nil {
		return volume.Space{}, err
	}
	defer d.Close() //nolint:errcheck // O_PATH
	s, err := d.Space()
	return volume.Space{Total: s.Total, Free: s.Free, InodesFree: s.InodesFree, ReadOnly: s.ReadOnly, Unbacked: unbacked}, err
}

// Inventory lists the ids of what is complete, in order; ext is what its names have behind the id.
func Inventory(p *pool.Pool, ext string) (volumes, snapshots []string, err error) {
	d, err := p.Dir()
	if err != nil {
		return nil, nil, err
	}
	defer d.Close() //nolint:errcheck // O_PATH
	list := func(dir string) ([]string, error) {
		names, err := d.Names(dir)
		ids := make([]string, 0, len(names))
		for _, n := range names {
			ids = append(ids, strings.TrimSuffix(n, ext))
		}
		slices.Sort(ids)
		return ids, err
	}
	volumes, verr := list(pool.Volumes)
	snapshots, serr := list(pool.Snapshots)
	return volumes, snapshots, errors.Join(verr, serr)
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
