package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-project/berth/proto/errs"
)

// Change is Set for a group in which something runs: all limits or none. If the kernel refuses one, those before it get
// their old values back; the error says so of one that cannot (a file of one line a device, as io.max, has no old value to
// write). Files that have their value already are not touched.
//
// Memory below the present use is ResourceExhausted. Of itself only v1 refuses it (EBUSY): v2 takes the limit, reclaims,
// and kills what it cannot reclaim ("memory.max", admin-guide/cgroup-v2.rst). So there the surplus is reclaimed first
// (memory.reclaim, Linux 5.19; before that nothing is, and page cache counts as use), and the limit is written only if
// the rest fits. Memory that is taken between that look and the write is not seen, and may be killed for.
func (l *Layout) Change(path string, r *specs.LinuxResources) error {
	all, err := l.compile(path, r)
	if err != nil {
		return err
	}
	var done []change
	for _, s := range all {
		c := change{setting: s, file: l.fileOf(path, s)}
		c.old, c.err = read(c.file)
		if c.err == nil && c.old == s.value {
			continue
		}
		if err = l.mayShrink(path, s); err == nil {
			err = l.apply(path, s)
		}
		if err != nil {
			break
		}
		done = append(done, c)
	}
	if err == nil {
		return nil
	}
	for _, c := range slices.Backward(done) {
		err = errors.Join(err, c.undo())
	}
	return fmt.Errorf("cgroup %s: %w", path, err)
}

// change is a setting that was made, and what was there before.
type change struct {
	setting
	file string
	old  string
	err  error // of reading it
}

// undo writes the old value. An empty one needs a line end: no byte is no write.
func (c change) undo() error {
	if c.optional && errors.Is(c.err, fs.ErrNotExist) {
		return nil
	}
	err := c.err
	if c.controller == "io" {
		err = errors.New("it has no value to go back to")
	}
	if err == nil {
		err = write(c.file, c.old+"\n")
	}
	if err != nil {
		return fmt.Errorf("%s stays at %q: %w", c.setting.file, c.value, err)
	}
	return nil
}

// mayShrink makes room below a lower memory limit on v2, or says that there is none.
func (l *Layout) mayShrink(path string, s setting) error {
	if !l.V2 || s.file != "memory.max" {
		return nil
	}
	limit, err := strconv.ParseUint(s.value, 10, 64)
	if err != nil {
		return nil //nolint:nilerr // "max", or what the kernel will refuse
	}
	dir := l.Unified + path
	used, err := readUint(filepath.Join(dir, "memory.current"))
	if err != nil {
		return err
	}
	if used > limit {
		err := write(filepath.Join(dir, "memory.reclaim"), itoa(used-limit))
		if err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, fs.ErrNotExist) { // less than that was reclaimed, or the kernel cannot
			return err
		}
		if used, err = readUint(filepath.Join(dir, "memory.current")); err != nil {
			return err
		}
	}
	return fits(used, limit)
}

func fits(used, limit uint64) error {
	if used > limit {
		return errs.ResourceExhausted.Errorf("memory.max: %d bytes, but %d are in use and cannot be reclaimed", limit, used)
	}
	return nil
}
