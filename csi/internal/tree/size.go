package tree

import (
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// Usage is what a directory with all below it takes: a file with several names counts once, a hole does not count.
type Usage struct{ Bytes, Inodes int64 }

// Size walks a directory.
func Size(ctx context.Context, dir *os.File) (Usage, error) {
	u := Usage{}
	err := size(ctx, dir, &u, map[uint64]bool{})
	return u, err
}

func size(ctx context.Context, dir *os.File, u *Usage, seen map[uint64]bool) error {
	names, err := list(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		var st unix.Stat_t
		if err := errors.Join(ctx.Err(), unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)); err != nil {
			return err
		}
		if seen[st.Ino] {
			continue
		}
		if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			seen[st.Ino] = true
		}
		u.Bytes += st.Blocks * 512
		u.Inodes++
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			continue
		}
		d, err := open(dir, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		if err := errors.Join(size(ctx, d, u, seen), d.Close()); err != nil {
			return err
		}
	}
	return nil
}
