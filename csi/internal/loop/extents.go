package loop

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/csi/internal/pool"
	"github.com/berth-project/berth/csi/internal/volume"
	"github.com/berth-project/berth/proto/errs"
)

// Changed implements volume.Snapshots, by where the kernel says that the bytes of the two files are (FIEMAP).
func (b *Backend) Changed(ctx context.Context, base, target string) ([]volume.Range, error) {
	d, err := b.pool.Dir()
	if err != nil {
		return nil, err
	}
	defer d.Close() //nolint:errcheck // O_PATH
	to, err := b.extents(ctx, d, target)
	if err != nil || base == "" {
		return allocated(to), err
	}
	if !b.reflink.Load() {
		return nil, errs.FailedPrecondition.Errorf("the pool at %s has no reflinks, so its snapshots share no blocks and what changed is not known: copy all, or use a pool on xfs or btrfs", b.pool.Path())
	}
	from, err := b.extents(ctx, d, base)
	return changed(from, to), err
}

func (b *Backend) extents(ctx context.Context, d *pool.Dir, snapshot string) ([]extent, error) {
	f, err := d.Beneath(file(pool.Snapshots, snapshot), unix.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, errs.NotFound.Errorf("the file of snapshot %s: %w", snapshot, err)
	}
	all, err := fiemap(ctx, f)
	return all, errors.Join(err, f.Close())
}

// linux/fiemap.h
const (
	fsIocFiemap     = 0xc020660b // _IOWR('f', 11, struct fiemap)
	fiemapSync      = 1
	fiemapBatch     = 512
	fiemapHead      = 32
	fiemapExtent    = 56
	extentLast      = 0x1
	extentUnknown   = 0x2 | 0x4 | 0x8 | 0x80 | 0x100 | 0x200 | 0x400 // UNKNOWN, DELALLOC, ENCODED, ENCRYPTED, NOT_ALIGNED, INLINE, TAIL
	extentUnwritten = 0x800
)

// fiemap asks for all extents of a file, whose data is written back first.
func fiemap(ctx context.Context, f *os.File) ([]extent, error) {
	var all []extent
	buf := make([]byte, fiemapHead+fiemapBatch*fiemapExtent)
	ne := binary.NativeEndian
	for from := uint64(0); ; {
		clear(buf[:fiemapHead])
		ne.PutUint64(buf[0:], from)
		ne.PutUint64(buf[8:], ^uint64(0)-from)
		ne.PutUint32(buf[16:], fiemapSync)
		ne.PutUint32(buf[24:], fiemapBatch)
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fsIocFiemap, uintptr(unsafe.Pointer(&buf[0]))); errno != 0 {
			return nil, fmt.Errorf("FS_IOC_FIEMAP on %s: %w", f.Name(), errno)
		}
		n := int(ne.Uint32(buf[20:]))
		for i := range n {
			e := buf[fiemapHead+i*fiemapExtent:]
			flags := ne.Uint32(e[40:])
			all = append(all, extent{
				at: int64(ne.Uint64(e)), physical: int64(ne.Uint64(e[8:])), length: int64(ne.Uint64(e[16:])), //nolint:gosec // a file's
				zero: flags&extentUnwritten != 0, unknown: flags&extentUnknown != 0,
			})
			from = ne.Uint64(e) + ne.Uint64(e[16:])
			if flags&extentLast != 0 {
				return all, nil
			}
		}
		if err := ctx.Err(); n == 0 || err != nil {
			return all, err
		}
	}
}
