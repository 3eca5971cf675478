// Package mkfs makes and repairs file systems with the programs of e2fsprogs and xfsprogs, which know their formats
// better than we ever would. It starts them without a shell, always on an open file that it hands down, and formats only
// what its caller has just made: see [New].
package mkfs

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/berth-project/berth/proto/errs"
)

// missing names the programs that are needed for a file system and not installed.
func missing(fstype string) []string {
	need := map[string][]string{"ext4": {"mkfs.ext4", "e2fsck", "resize2fs"}, "xfs": {"mkfs.xfs"}}
	var lacks []string
	for _, p := range need[fstype] {
		if _, err := exec.LookPath(p); err != nil {
			lacks = append(lacks, p)
		}
	}
	return lacks
}

// Available are the types whose programs are installed. Without any it is FailedPrecondition that names what to install
// for a backend.
func Available(backend string) (types []string, err error) {
	var lacks []string
	for _, t := range []string{"ext4", "xfs"} {
		if m := missing(t); len(m) == 0 {
			types = append(types, t)
		} else {
			lacks = append(lacks, m...)
		}
	}
	if len(types) == 0 {
		return nil, errs.FailedPrecondition.Errorf("backend %s needs one of the programs %s: install e2fsprogs or xfsprogs", backend, strings.Join(lacks, ", "))
	}
	return types, nil
}

// MinSizes are the smallest sizes of file systems in bytes, by type: ext4 needs room for a journal, xfsprogs refuses less
// than 300 MiB since 5.19.
func MinSizes(types []string) map[string]int64 {
	least := map[string]int64{}
	for _, t := range types {
		least[t] = 8 << 20
		if t == "xfs" {
			least[t] = 300 << 20
		}
	}
	return least
}

// New makes a file system in a file that the caller has made, whose every byte reads as zero and that nobody else
// knows. Nothing is discarded, which would punch holes into a thick file, and nothing is zeroed again.
func New(ctx context.Context, fstype string, file *os.File) error {
	return create(ctx, fstype, file, "nodiscard,lazy_itable_init=1,lazy_journal_init=1,assume_storage_prezeroed=1", 0)
}

// NewOn makes a file system of size bytes on a device of which only the first 64 KiB need be zero: what else it holds
// is overwritten or never shown by the file system.
func NewOn(ctx context.Context, fstype string, dev *os.File, size int64) error {
	return create(ctx, fstype, dev, "nodiscard,lazy_itable_init=1,lazy_journal_init=0", size)
}

// create runs the program; extended are mke2fs's options of -E, size 0 is all there is.
func create(ctx context.Context, fstype string, file *os.File, extended string, size int64) error {
	var first [64 << 10]byte
	if _, err := file.ReadAt(first[:], 0); err != nil {
		return err
	}
	if len(bytes.Trim(first[:], "\x00")) > 0 { // a broken invariant of ours: rather fail than format
		return errs.Internal.Errorf("%s is not empty, it is not formatted", file.Name())
	}
	const self = "/proc/self/fd/3"
	switch fstype {
	case "ext4":
		args := []string{"-F", "-q", "-b", "4096", "-m", "0", "-E", extended, self}
		if size > 0 {
			args = append(args, fmt.Sprintf("%dK", size/4096*4))
		}
		return run(ctx, file, 0, "mkfs.ext4", args...)
	case "xfs":
		args := []string{"-q", "-K", "-f", "-s", "size=4096"}
		if size > 0 {
			args = append(args, "-d", fmt.Sprintf("size=%d", size/4096*4096))
		}
		return run(ctx, file, 0, "mkfs.xfs", append(args, self)...)
	}
	return errs.InvalidArgument.Errorf("fs_type %q: want ext4 or xfs", fstype)
}

// Repair brings an ext4 that the kernel has marked as having errors into order, as far as e2fsck does so without
// asking. A file system that is well is not touched. xfs recovers from its log when it is mounted, and nobody runs
// xfs_repair for the operator.
func Repair(ctx context.Context, fstype string, file *os.File) error {
	if fstype != "ext4" {
		return nil
	}
	super, err := readSuper(file)
	if err != nil {
		return err
	}
	if binary.LittleEndian.Uint16(super[0x3A:])&2 == 0 { // EXT4_ERROR_FS
		return nil
	}
	return run(ctx, file, 1, "e2fsck", "-p", "/proc/self/fd/3") // exit code 1: errors were corrected
}

// readSuper reads the superblock of an ext4 (Documentation/filesystems/ext4/super.rst).
func readSuper(file *os.File) (super [1024]byte, err error) {
	if _, err := file.ReadAt(super[:], 1024); err != nil {
		return super, err
	}
	if binary.LittleEndian.Uint16(super[0x38:]) != 0xEF53 {
		return super, errs.Internal.Errorf("%s holds no ext4: its data is damaged; restore it, nothing is formatted", file.Name())
	}
	return super, nil
}

// Ext4Size is the size of the ext4 in a file or on a device, in bytes.
func Ext4Size(file *os.File) (int64, error) {
	super, err := readSuper(file)
	if err != nil {
		return 0, err
	}
	blocks := int64(binary.LittleEndian.Uint32(super[0x4:])) | int64(binary.LittleEndian.Uint32(super[0x150:]))<<32
	return blocks << (10 + binary.LittleEndian.Uint32(super[0x18:])), nil
}

// Slack is by how much an ext4 may be smaller than its volume without being grown, in bytes: the last block group must
// hold its own tables, else it is left out.
const Slack = 4 << 20

// Grow makes an ext4 that is not mounted as large as size says, if it is smaller by more than Slack. A mounted one
// could be grown by an ioctl, which the kernel allows to CAP_SYS_RESOURCE only; xfs can only be grown mounted.
func Grow(ctx context.Context, fstype string, file *os.File, size int64) error {
	if fstype != "ext4" {
		return nil
	}
	have, err := Ext4Size(file)
	if err != nil || have+Slack > size {
		return err
	}
	if err := run(ctx, file, 1, "e2fsck", "-f", "-p", "/proc/self/fd/3"); err != nil {
		return err
	}
	return run(ctx, file, 0, "resize2fs", "/proc/self/fd/3", fmt.Sprintf("%dK", size/4096*4))
}

// run starts a program with the file as descriptor 3; a code above most is an error with what it wrote. It is never stopped
// half way: a check of a large file system takes longer than a caller waits, and one that is begun anew each time never ends.
func run(ctx context.Context, file *os.File, most int, name string, args ...string) error {
	cmd := exec.CommandContext(context.WithoutCancel(ctx), name, args...)
	cmd.ExtraFiles = []*os.File{file}
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() >= 0 && exit.ExitCode() <= most {
		return nil
	}
	if errors.Is(err, exec.ErrNotFound) {
		return errs.FailedPrecondition.Errorf("%s is not installed on this node: install e2fsprogs or xfsprogs", name)
	}
	if err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, strings.Join(strings.Fields(out.String()), " "))
	}
	return nil
}
