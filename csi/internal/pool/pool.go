// Package pool is the directory that the volumes of a pool are in: whether it is the right one, and the few names
// below it. It knows nothing of what a volume is made of.
//
//	POOL/.berth-pool   who the pool is: its identity, sealed
//	POOL/volumes/      what is complete, by the volume's id
//	POOL/snapshots/    likewise, by the snapshot's
//	POOL/building/     what is being made; renamed when it is complete, so that what is in volumes/ always is
//	POOL/trash/        what is to be erased, under names that are never used again
//
// Every use opens the directory anew and checks the identity: a pool whose file system was unmounted beneath us is
// Unavailable, and what is below its mount point is not touched. No descriptor is kept, so that an operator can
// unmount an idle pool.
package pool

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/internal/atomicfile"
	"github.com/berth-project/berth/internal/inroot"
	"github.com/berth-project/berth/proto/errs"
)

// The directories of a pool.
const (
	Volumes   = "volumes"
	Snapshots = "snapshots"
	Building  = "building"
	Trash     = "trash"
)

const marker = ".berth-pool"

// Pool is a directory that has been opened once. Use [Open].
type Pool struct {
	path, id string
}

type identity struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

// Open opens the pool at path. known is the identity that it had before, or "" for one that is new: then the
// directory is made if needed, and gets an identity if it has none.
func Open(path, name, known string) (*Pool, error) {
	p := &Pool{path: path, id: known}
	if known != "" {
		d, err := p.Dir()
		if err != nil {
			return p, err // the caller may keep it and try later
		}
		return p, d.Close()
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("pool %s: %w", name, err)
	}
	for _, d := range []string{Volumes, Snapshots, Building, Trash} {
		if err := os.Mkdir(path+"/"+d, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return nil, fmt.Errorf("pool %s: %w", name, err)
		}
	}
	have, err := read(path)
	if errors.Is(err, os.ErrNotExist) {
		have = identity{ID: strings.ToLower(rand.Text()), Name: name}
		b, merr := json.Marshal(have)
		err = errors.Join(merr, atomicfile.WriteSealed(path+"/"+marker, b, 0o600), syncFS(path))
	}
	if err != nil {
		return nil, fmt.Errorf("pool %s: %w", name, err)
	}
	p.id = have.ID
	return p, nil
}

func read(path string) (id identity, err error) {
	b, err := atomicfile.ReadSealed(path + "/" + marker)
	if err != nil {
		return id, err
	}
	return id, json.Unmarshal(b, &id)
}

func syncFS(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
}

// ID is the pool's identity.
func (p *Pool) ID() string { return p.id }

// Path is where the pool is, for messages.
func (p *Pool) Path() string { return p.path }

// Dir is an open pool. Close it after the operation.
type Dir struct {
	*inroot.Root
}

// Dir opens the pool's directory. A directory that is missing or is not this pool is Unavailable.
func (p *Pool) Dir() (*Dir, error) {
	r, err := inroot.Open(p.path)
	if err != nil {
		return nil, errs.Unavailable.Errorf("the pool at %s is not there: mount it: %w", p.path, err)
	}
	f, err := r.Beneath(marker, unix.O_RDONLY, 0)
	if err != nil {
		return nil, errors.Join(errs.Unavailable.Errorf("the pool at %s is not there, only its mount point is: mount it: %w", p.path, err), r.Close())
	}
	b, err := io.ReadAll(io.LimitReader(f, 4096))
	err = errors.Join(err, f.Close())
	var id identity
	if err == nil {
		if b, err = atomicfile.Unseal(b); err == nil {
			err = json.Unmarshal(b, &id)
		}
	}
	if err != nil {
		return nil, errors.Join(errs.Unavailable.Errorf("the pool at %s cannot be read: %w", p.path, err), r.Close())
	}
	if id.ID != p.id {
		return nil, errors.Join(errs.Unavailable.Errorf("at %s is another pool (%s, not %s): mount the right one", p.path, id.ID, p.id), r.Close())
	}
	return &Dir{r}, nil
}

// Names lists one of the pool's directories.
func (d *Dir) Names(dir string) ([]string, error) {
	f, err := d.Beneath(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	names, err := f.Readdirnames(-1)
	return names, errors.Join(err, f.Close())
}

// Sub opens one of the pool's directories for the *at system calls and ioctls.
func (d *Dir) Sub(dir string) (*os.File, error) {
	return d.Beneath(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
}

// Exists says whether there is something at a name.
func (d *Dir) Exists(name string) (bool, error) {
	f, err := d.Beneath(name, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, f.Close()
}

// Rename moves a name of one directory to one of another, which must be free, and makes that durable if sync is set.
func (d *Dir) Rename(from, to string, sync bool) error {
	if err := unix.Renameat2(d.Fd(), from, d.Fd(), to, unix.RENAME_NOREPLACE); err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	if !sync {
		return nil
	}
	f, err := d.Sub(to[:strings.LastIndexByte(to, '/')])
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Discard moves a name into the trash, under one that is never used again; one that is not there is fine.
func (d *Dir) Discard(name string) error {
	base := name[strings.LastIndexByte(name, '/')+1:]
	err := d.Rename(name, fmt.Sprintf("%s/%s.%d", Trash, base, time.Now().UnixNano()), false)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// Remove is Discard of something that is complete: when it answers, no power cut brings it back.
func (d *Dir) Remove(name string) error {
	there, err := d.Exists(name)
	if err != nil || !there {
		return err
	}
	if err := d.Discard(name); err != nil {
		return err
	}
	f, err := d.Sub(name[:strings.LastIndexByte(name, '/')])
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Space is the state of the pool's file system, in bytes and inodes; InodesFree is -1 where there is no limit (btrfs).
type Space struct {
	Total, Free, InodesFree int64
	ReadOnly                bool
	FSType                  int64 // statfs(2) f_type
}

// Space asks the file system.
func (d *Dir) Space() (Space, error) {
	var st unix.Statfs_t
	f, err := d.Sub(Volumes)
	if err != nil {
		return Space{}, err
	}
	if err := errors.Join(unix.Fstatfs(int(f.Fd()), &st), f.Close()); err != nil {
		return Space{}, err
	}
	s := Space{
		Total: int64(st.Blocks) * st.Bsize, Free: int64(st.Bavail) * st.Bsize, InodesFree: int64(st.Ffree), //nolint:gosec // sizes fit
		ReadOnly: st.Flags&unix.ST_RDONLY != 0, FSType: st.Type,
	}
	if st.Files == 0 {
		s.InodesFree = -1
	}
	return s, nil
}

// Full turns a file system's "no room" into ResourceExhausted and "read-only" into Unavailable; other errors stay.
func Full(err error) error {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return errs.ResourceExhausted.Errorf("the pool is full or out of inodes: %w", err)
	case errors.Is(err, unix.EROFS):
		return errs.Unavailable.Errorf("the pool is read-only: see the kernel's log for why: %w", err)
	}
	return err
}
