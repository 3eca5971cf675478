package static

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/csi/internal/pool"
	"github.com/berth-project/berth/internal/atomicfile"
	"github.com/berth-project/berth/proto/errs"
)

// record says which device is meant; where it lies says what it is.
type record struct {
	Device   string `json:"device"` // path, as it was named
	Size     int64  `json:"size"`
	Identity string `json:"identity,omitempty"`
	Erased   int64  `json:"erased,omitempty"` // in the trash: bytes from its beginning that are zero
}

func (k disk) record() record { return record{Device: k.path, Size: k.size, Identity: k.identity} }

// is says whether the record is of a device as it is now.
func (r record) is(k disk) bool {
	return r.Device == k.path && r.Size == k.size && r.Identity == k.identity
}

// disk is the record's device. One that is not there, or another one at its path, is Unavailable.
func (r record) disk() (disk, error) {
	k, err := look(r.Device)
	if err != nil {
		return k, errs.Unavailable.Errorf("device %s is not there: attach it: %w", r.Device, err)
	}
	if !r.is(k) {
		return k, errs.Unavailable.Errorf("at %s is another device (%d bytes, %q) than the one with the volume (%d bytes, %q): attach that", r.Device, k.size, k.identity, r.Size, r.Identity)
	}
	return k, nil
}

// read reads a record of the pool's directory.
func read(d *pool.Dir, name string) (r record, found bool, err error) {
	f, err := d.Beneath(name, unix.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return r, false, nil
	}
	if err != nil {
		return r, false, err
	}
	b, err := io.ReadAll(io.LimitReader(f, 1<<16))
	if err = errors.Join(err, f.Close()); err != nil {
		return r, true, err
	}
	if b, err = atomicfile.Unseal(b); err == nil {
		err = json.Unmarshal(b, &r)
	}
	if err != nil {
		return r, true, errs.Internal.Errorf("the record %s is damaged: its device is left alone until an operator has looked at it: %w", name, err)
	}
	return r, true, nil
}

// write makes a record durable, in the place of what had its name.
func write(d *pool.Dir, name string, r record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	dir, base := path.Split(name)
	tmp := dir + "." + base
	f, err := d.Beneath(tmp, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(atomicfile.Seal(b))
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := unix.Renameat(d.Fd(), tmp, d.Fd(), name); err != nil {
		return &os.LinkError{Op: "rename", Old: tmp, New: name, Err: err}
	}
	return syncDir(d, dir)
}

// remove makes it durable that a record is gone; one that is not there is fine.
func remove(d *pool.Dir, name string) error {
	if err := unix.Unlinkat(d.Fd(), name, 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		return &os.PathError{Op: "unlink", Path: name, Err: err}
	}
	return syncDir(d, path.Dir(name))
}

func syncDir(d *pool.Dir, dir string) error {
	f, err := d.Sub(strings.TrimSuffix(dir, "/"))
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// names are the records in one of the pool's directories; what begins with a dot is half written.
func names(d *pool.Dir, dir string) ([]string, error) {
	all, err := d.Names(dir)
	var out []string
	for _, n := range all {
		if !strings.HasPrefix(n, ".") {
			out = append(out, n)
		}
	}
	return out, err
}

// taken are the records of all devices that are not blank, by path. A damaged record says not which device is whose, so
// it is an error of all.
func taken(d *pool.Dir) (map[string]record, error) {
	all := map[string]record{}
	for _, dir := range []string{pool.Volumes, pool.Building, pool.Trash} {
		list, err := names(d, dir)
		if err != nil {
			return nil, err
		}
		for _, n := range list {
			r, there, err := read(d, dir+"/"+n)
			if err != nil {
				return nil, err
			}
			if there {
				all[r.Device] = r
			}
		}
	}
	return all, nil
}
