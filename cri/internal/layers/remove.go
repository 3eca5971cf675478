package layers

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// removeAt removes base in dir and everything below it, by descriptor and without following links. It returns how
// many inodes and bytes of regular files are gone for good: a hard link that is not the last counts as none.
// Nothing there is no error.
func removeAt(dir int, base string) (inodes, bytes int64, err error) {
	var st unix.Stat_t
	if err := fstatat(dir, base, &st); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return 0, 0, nil
		}
		return 0, 0, os.NewSyscallError("fstatat", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		if err := unix.Unlinkat(dir, base, 0); err != nil && !errors.Is(err, unix.ENOENT) {
			return 0, 0, os.NewSyscallError("unlinkat", err)
		}
		if st.Nlink > 1 {
			return 0, 0, nil
		}
		if st.Mode&unix.S_IFMT == unix.S_IFREG {
			bytes = st.Size
		}
		return 1, bytes, nil
	}
	fd, err := unix.Openat(dir, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, 0, os.NewSyscallError("openat", err)
	}
	f := os.NewFile(uintptr(fd), base)
	defer f.Close() //nolint:errcheck // read only
	for {
		names, rerr := f.Readdirnames(256)
		for _, n := range names {
			i, b, err := removeAt(fd, n)
			inodes, bytes = inodes+i, bytes+b
			if err != nil {
				return inodes, bytes, err
			}
		}
		if rerr != nil || len(names) == 0 {
			break
		}
		if _, err := f.Seek(0, 0); err != nil {
			return inodes, bytes, err
		}
	}
	if err := unix.Unlinkat(dir, base, unix.AT_REMOVEDIR); err != nil && !errors.Is(err, unix.ENOENT) {
		return inodes, bytes, os.NewSyscallError("unlinkat", err)
	}
	return inodes + 1, bytes, nil
}

// Clear empties an open directory.
func Clear(dir *os.File) error {
	d, err := os.Open(dir.Name())
	if err != nil {
		return err
	}
	defer d.Close() //nolint:errcheck // read only
	names, err := d.Readdirnames(-1)
	for _, n := range names {
		_, _, rerr := removeAt(int(dir.Fd()), n)
		err = errors.Join(err, rerr)
	}
	return err
}
