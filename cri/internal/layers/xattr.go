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
