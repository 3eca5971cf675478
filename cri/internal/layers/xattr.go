package layers

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// listXattrs names the extended attributes of an open file that an image may carry, in order.
func listXattrs(fd int) ([]string, error) {
	buf := make([]byte, 64<<10) // XATTR_LIST_MAX
	n, err := unix.Flistxattr(fd, buf)
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("flistxattr: %w", err)
	}
	var out []string
	for name := range strings.SplitSeq(string(buf[:n]), "\x00") {
		if name != "" && keepXattr(name) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out, nil
}

func getXattr(fd int, name string) ([]byte, error) {
	buf := make([]byte, 64<<10) // XATTR_SIZE_MAX
	n, err := unix.Fgetxattr(fd, name, buf)
	if err != nil {
		return nil, fmt.Errorf("fgetxattr %s: %w", name, err)
	}
	return buf[:n], nil
}

// xattrError blames the archive for an attribute that cannot be, or that is too long: ext4 says ENOSPC for a value that
// does not fit into a block, however much room there is.
func xattrError(entry, attr, value string, err error) error {
	const block = 1 << 10 // the smallest
	switch {
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ERANGE), errors.Is(err, unix.E2BIG), errors.Is(err, unix.EACCES),
		errors.Is(err, unix.ENOSPC) && len(attr)+len(value) > block-64:
		return badEntry(entry, "extended attribute %.100q of %d bytes: %v", attr, len(value), err)
	}
	return fmt.Errorf("fsetxattr %.300s: %w", attr, err)
}
