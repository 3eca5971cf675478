package static

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/csi/internal/blockdev"
)

// disk is a device as it is now.
type disk struct {
	path     string // as the operator has named it
	node     string // what that leads to
	number   uint64
	size     int64
	identity string // the kernel's word for which device it is, "" if it has none
}

// key is the name of a device's record.
func (k disk) key() string {
	sum := sha256.Sum256([]byte(k.path))
	return hex.EncodeToString(sum[:12])
}

// look opens what is at a path for reading, for a moment.
func look(path string) (k disk, err error) {
	node, err := filepath.EvalSymlinks(path)
	if err != nil {
		return k, err
	}
	f, err := os.OpenFile(node, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return k, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	k = disk{path: path, node: node}
	if k.number, err = blockdev.Number(f); err != nil {
		return k, err
	}
	if k.size, err = blockdev.Size(f); err != nil {
		return k, err
	}
	k.identity, err = identity(k.number)
	return k, err
}

// identity is what the kernel says about which device a number is, by the first attribute in sysfs that says it; of a
// partition its UUID, or its disk's and its number.
func identity(number uint64) (string, error) {
	dir, err := filepath.EvalSymlinks(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(number), unix.Minor(number)))
	if err != nil {
		return "", err
	}
	part := attribute(dir, "partition")
	if part != "" {
		for line := range strings.Lines(attribute(dir, "uevent")) {
			if uuid, ok := strings.CutPrefix(strings.TrimSpace(line), "PARTUUID="); ok {
				return "PARTUUID=" + uuid, nil
			}
		}
		dir = filepath.Dir(dir)
	}
	for _, name := range []string{"wwid", "device/wwid", "serial", "device/serial", "dm/uuid", "loop/backing_file"} {
		if text := attribute(dir, name); text != "" {
			return strings.TrimSuffix(name+"="+text+"/"+part, "/"), nil
		}
	}
	return "", nil
}

// attribute is a file of sysfs; one that is not there is "".
func attribute(dir, name string) string {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// disks are all that are named and there, in the order of their paths. One that is not there, or is no block device,
// is among the refused.
func (b *Backend) disks() (all []disk, err error) {
	var paths []string
	for _, n := range b.named {
		fi, err := os.Stat(n)
		if err == nil && fi.IsDir() {
			names, err := os.ReadDir(n)
			if err != nil {
				return nil, err
			}
			for _, e := range names {
				paths = append(paths, filepath.Join(n, e.Name()))
			}
			continue
		}
		paths = append(paths, n)
	}
	slices.Sort(paths)
	for _, p := range slices.Compact(paths) {
		k, err := look(p)
		if err != nil {
			b.refuse(p, err.Error())
			continue
		}
		all = append(all, k)
	}
	return all, nil
}

// distinct leaves out, and refuses, what is a device once more under another path: links come and go while the driver runs. The
// path that has the record stays, also of one that is named no more.
func (b *Backend) distinct(all []disk, used map[string]record) (out []disk) {
	owner := map[uint64]string{}
	for _, k := range all {
		if r, is := used[k.path]; is && r.is(k) {
			owner[k.number] = k.path
		}
	}
	for _, k := range all {
		other := owner[k.number]
		if other == "" {
			other = recorded(k, used)
		}
		if other != "" && other != k.path {
			b.refuse(k.path, "it is the same device as "+other)
			continue
		}
		owner[k.number] = k.path
		out = append(out, k)
	}
	return out
}

// recorded is the path under which another record has a device of the same identity, or "".
func recorded(k disk, used map[string]record) string {
	for path, r := range used {
		if path != k.path && k.identity != "" && r.Identity == k.identity && r.Size == k.size {
			return path
		}
	}
	return ""
}

func (b *Backend) refuse(path, why string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refused[path] = why
}
