package volume

import (
	"errors"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/csi/internal/mount"
	"github.com/berth-project/berth/internal/inroot"
	"github.com/berth-project/berth/proto/errs"
)

// place is a path of the kubelet's: its parent, open, and its last part. Nothing on the way below the kubelet's
// directory may be a symbolic link, so that no content of a volume can lead us elsewhere.
type place struct {
	parent *os.File
	base   string
	path   string
}

func (m *Manager) open(path string) (*place, error) {
	below, ok := strings.CutPrefix(path, m.conf.KubeletDir+"/")
	if !ok || filepath.Clean(path) != path || strings.ContainsRune(path, 0) || len(path) > 4095 {
		return nil, errs.InvalidArgument.Errorf("path %.200q: want a clean absolute path below %s (setting kubelet_dir)", path, m.conf.KubeletDir)
	}
	root, err := inroot.Open(m.conf.KubeletDir)
	if err != nil {
		return nil, errs.Unavailable.Errorf("kubelet_dir: %w", err)
	}
	defer root.Close() //nolint:errcheck // O_PATH
	dir, err := root.Beneath(filepath.Dir(below), unix.O_PATH|unix.O_DIRECTORY, 0)
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.EXDEV) {
		return nil, errs.InvalidArgument.Errorf("path %s: a part of it is a symbolic link: %w", path, err)
	}
	if err != nil {
		return nil, err
	}
	return &place{parent: dir, base: filepath.Base(below), path: path}, nil
}

func (p *place) close() { _ = p.parent.Close() } // O_PATH

// at opens what is there, without following a link, and looks at it.
func (p *place) at() (*os.File, mount.Point, error) {
	fd, err := unix.Openat(int(p.parent.Fd()), p.base, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, mount.Point{}, &os.PathError{Op: "open", Path: p.path, Err: err}
	}
	f := os.NewFile(uintptr(fd), p.path)
	at, err := mount.At(f)
	if err == nil && at.Mode&unix.S_IFMT == unix.S_IFLNK {
		err = errs.InvalidArgument.Errorf("path %s is a symbolic link", p.path)
	}
	if err != nil {
		return nil, at, errors.Join(err, f.Close())
	}
	return f, at, nil
}

// look opens what is at a path of the kubelet's.
func (m *Manager) look(path string) (*os.File, mount.Point, error) {
	p, err := m.open(path)
	if err != nil {
		return nil, mount.Point{}, err
	}
	defer p.close()
	return p.at()
}

// make makes the last part, a directory or a file, unless it is there.
func (p *place) make(dir bool) error {
	var err error
	if dir {
		err = unix.Mkdirat(int(p.parent.Fd()), p.base, 0o750)
	} else {
		var fd int
		fd, err = unix.Openat(int(p.parent.Fd()), p.base, unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o640)
		if err == nil {
			err = unix.Close(fd)
		}
	}
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return &os.PathError{Op: "make", Path: p.path, Err: err}
	}
	return nil
}

// remove removes the last part, which is not a mount any more; one that is not there is fine. A directory must be
// empty: what is in it is not ours.
func (p *place) remove() error {
	err := unix.Unlinkat(int(p.parent.Fd()), p.base, 0)
	if errors.Is(err, unix.EISDIR) {
		err = unix.Unlinkat(int(p.parent.Fd()), p.base, unix.AT_REMOVEDIR)
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		if errors.Is(err, unix.ENOTEMPTY) {
			return errs.FailedPrecondition.Errorf("path %s is no mount any more, and not empty: what is in it was not written to the volume; look at it and remove it: %w", p.path, err)
		}
		return &os.PathError{Op: "remove", Path: p.path, Err: err}
	}
	return nil
}
