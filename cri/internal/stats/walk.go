package stats

import (
	"context"
	"path"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/internal/inroot"
)

// walk adds up what is in a tree that a container writes to meanwhile: what vanishes does not count, a file with several
// names counts once, and no link leads out of it. It is not complete if there are more files than most, or when
// ctx ends. Directories are read in pieces, since one may hold millions.
func walk(ctx context.Context, dir string, most int) (s size, complete bool) {
	root, err := inroot.Open(dir)
	if err != nil {
		return s, true // it has not been made yet, or is gone
	}
	defer root.Close() //nolint:errcheck // read only
	seen := map[uint64]bool{}
	count := func(st *unix.Stat_t) bool {
		switch {
		case ctx.Err() != nil || s.inodes >= uint64(most): //nolint:gosec // positive
			return false
		case !seen[st.Ino]:
			seen[st.Ino] = true
			s.bytes += uint64(st.Blocks) * 512 //nolint:gosec // not negative
			s.inodes++
		}
		return true
	}
	var st unix.Stat_t
	if err := unix.Fstat(root.Fd(), &st); err == nil && !count(&st) {
		return s, false
	}
	for dirs := []string{"."}; len(dirs) > 0; {
		next := dirs[len(dirs)-1]
		more, ok := entries(root, next, count)
		if !ok {
			return s, false
		}
		dirs = append(dirs[:len(dirs)-1], more...)
	}
	return s, true
}

// entries shows those of a directory to see, until that says no, and returns the directories among them.
func entries(root *inroot.Root, dir string, see func(*unix.Stat_t) bool) (dirs []string, all bool) {
	d, err := root.Beneath(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, true // it has vanished, or is a link by now
	}
	defer d.Close() //nolint:errcheck // read only
	for {
		const piece = 256
		ents, err := d.Readdirnames(piece)
		for _, name := range ents {
			var st unix.Stat_t
			if err := unix.Fstatat(int(d.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT); err != nil {
				continue // it has vanished
			}
			if !see(&st) {
				return nil, false
			}
			if st.Mode&unix.S_IFMT == unix.S_IFDIR {
				dirs = append(dirs, path.Join(dir, name))
			}
		}
		if err != nil || len(ents) == 0 {
			return dirs, true
		}
	}
}
