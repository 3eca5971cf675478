// Package mount makes, looks at and ends mounts by file descriptors: a tree is made detached (fsopen(2), open_tree(2),
// Linux 5.2; mount_setattr(2), Linux 5.12), gets its attributes before anybody can see it, and is then moved onto a
// directory that is held open. A path is only used to unmount, and then never followed at its end.
//
// The package knows nothing of volumes.
package mount

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/proto/errs"
)

// Point is what is at an open path.
type Point struct {
	Mounted bool   // it is the root of a mount
	Dev     uint64 // the file system's device
	Ino     uint64
	Rdev    uint64 // of a device node
	Mode    uint16
	ReadOnly,
	Dir bool
}

// At looks at an open file or directory, which may be O_PATH (statx(2) with STATX_ATTR_MOUNT_ROOT, Linux 5.8).
func At(f *os.File) (Point, error) {
	var st unix.Statx_t
	if err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_STATX_SYNC_AS_STAT, unix.STATX_BASIC_STATS, &st); err != nil {
		return Point{}, &os.PathError{Op: "statx", Path: f.Name(), Err: err}
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
		return Point{}, &os.PathError{Op: "fstatfs", Path: f.Name(), Err: err}
	}
	return Point{
		Mounted: st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0,
		Dev:     unix.Mkdev(st.Dev_major, st.Dev_minor), Ino: st.Ino, Rdev: unix.Mkdev(st.Rdev_major, st.Rdev_minor),
		Mode: st.Mode, Dir: st.Mode&unix.S_IFMT == unix.S_IFDIR, ReadOnly: fs.Flags&unix.ST_RDONLY != 0,
	}, nil
}

// Same says whether two points are the same file: a bind mount and its source are.
func (p Point) Same(q Point) bool { return p.Dev == q.Dev && p.Ino == q.Ino && p.Rdev == q.Rdev }

// Clone is a detached mount of what name (relative to dir, or "" for dir itself) is: a bind mount in the making.
func Clone(dir *os.File, name string) (*os.File, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_SYMLINK_NOFOLLOW)
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	fd, err := unix.OpenTree(int(dir.Fd()), name, flags)
	if err != nil {
		return nil, &os.PathError{Op: "open_tree", Path: filepath.Join(dir.Name(), name), Err: err}
	}
	return os.NewFile(uintptr(fd), "tree"), nil
}

// FileSystem is a detached mount of a file system on a device. options are the file system's own.
func FileSystem(fstype, device string, readOnly bool, options ...string) (*os.File, error) {
	fail := func(op string, fs int, err error) (*os.File, error) {
		return nil, fmt.Errorf("%s of %s on %s: %w%s", op, fstype, device, err, reason(fs))
	}
	fs, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fail("fsopen", -1, err)
	}
	defer unix.Close(fs) //nolint:errcheck // nothing is written through it
	if err := unix.FsconfigSetString(fs, "source", device); err != nil {
		return fail("source", fs, err)
	}
	if readOnly {
		options = append(slices.Clone(options), "ro")
	}
	for _, o := range options {
		if err := unix.FsconfigSetFlag(fs, o); err != nil {
			return fail("option "+o, fs, err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return fail("mount", fs, err)
	}
	tree, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return fail("fsmount", fs, err)
	}
	return os.NewFile(uintptr(tree), "tree"), nil
}

// reason is what the kernel left in the context's log (fsopen(2)).
func reason(fs int) string {
	if fs < 0 {
		return ""
	}
	b := make([]byte, 512)
	n, err := unix.Read(fs, b)
	if err != nil || n < 3 {
		return ""
	}
	return " (" + strings.TrimSpace(string(b[2:n])) + ")"
}

// SetAttributes sets attributes (unix.MOUNT_ATTR_*) of a tree; those it has stay.
func SetAttributes(tree *os.File, set uint64) error {
	attr := unix.MountAttr{Attr_set: set}
	if set&(unix.MOUNT_ATTR_NOATIME|unix.MOUNT_ATTR_STRICTATIME) != 0 {
		attr.Attr_clr = unix.MOUNT_ATTR__ATIME
	}
	if set == 0 {
		return nil
	}
	if err := unix.MountSetattr(int(tree.Fd()), "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return fmt.Errorf("mount_setattr: %w", err)
	}
	return nil
}

// Attach puts a detached tree onto an open directory or file.
func Attach(tree, target *os.File) error {
	if err := unix.MoveMount(int(tree.Fd()), "", int(target.Fd()), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return &os.PathError{Op: "move_mount", Path: target.Name(), Err: err}
	}
	return nil
}

// Detach unmounts the topmost mount at name in the open directory parent. A link there is not followed. A mount that
// is busy is FailedPrecondition.
func Detach(parent *os.File, name string) error {
	err := unix.Unmount(fmt.Sprintf("/proc/self/fd/%d/%s", parent.Fd(), name), unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EBUSY) {
		return errs.FailedPrecondition.Errorf("unmount %s: a process of this node still uses it: %w", filepath.Join(parent.Name(), name), err)
	}
	if err != nil {
		return &os.PathError{Op: "umount2", Path: filepath.Join(parent.Name(), name), Err: err}
	}
	return nil
}

// Entry is one line of a mountinfo.
type Entry struct {
	ID     uint64
	Dev    string // major:minor
	Root   string // within the file system
	Point  string
	FSType string
	Source string
}

// Everywhere reads the mounts of every mount namespace that a process lives in, each namespace once.
func Everywhere() ([]Entry, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	var all []Entry
	for _, d := range dirs {
		ns, err := os.Readlink(d + "/ns/mnt")
		if err != nil || seen[ns] {
			continue // the process has ended, or is a kernel thread
		}
		entries, err := read(d + "/mountinfo")
		if err != nil {
			continue // ended just now: its namespace lives on only with another process, which is looked at too
		}
		seen[ns] = true
		all = append(all, entries...)
	}
	return all, nil
}

// Here reads the mounts of this process's namespace.
func Here() ([]Entry, error) { return read("/proc/self/mountinfo") }

// Device is the number of the file system that an open file is on, major:minor, which is the same for every subvolume of a
// btrfs (statx(2) with STATX_MNT_ID, Linux 5.8).
func Device(f *os.File) (string, error) {
	var st unix.Statx_t
	if err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st); err != nil {
		return "", &os.PathError{Op: "statx", Path: f.Name(), Err: err}
	}
	all, err := Here()
	for _, m := range all {
		if m.ID == st.Mnt_id {
			return m.Dev, nil
		}
	}
	return "", errors.Join(err, fmt.Errorf("%s: its mount %d is not in this mount namespace", f.Name(), st.Mnt_id))
}

// Within finds a mount, in any namespace, of the volume id in a pool's directory dir, or of something below it, on a file
// system of a type. The root of such a mount is POOL/dir/id/..., of which a tenant says only the end. "": none.
func Within(fstype, dir, id string) (point string, err error) {
	all, err := Everywhere()
	if err != nil {
		return "", err
	}
	for _, m := range all {
		if _, after, found := strings.Cut(m.Root, "/"+dir+"/v"); m.FSType == fstype && found && strings.HasPrefix("v"+after+"/", id+"/") {
			return m.Point, nil
		}
	}
	return "", nil
}

func read(file string) ([]Entry, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // read only
	var all []Entry
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		before, after, ok := strings.Cut(sc.Text(), " - ")
		w, x := strings.Fields(before), strings.Fields(after)
		if ok && len(w) > 4 && len(x) > 1 {
			id, err := strconv.ParseUint(w[0], 10, 64)
			if err != nil {
				return nil, fmt.Errorf("%s: mount id %q: %w", file, w[0], err)
			}
			all = append(all, Entry{ID: id, Dev: w[2], Root: unescape.Replace(w[3]), Point: unescape.Replace(w[4]), FSType: x[0], Source: unescape.Replace(x[1])})
		}
	}
	return all, sc.Err()
}

var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`) // proc_pid_mountinfo(5)
