package btrfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/csi/internal/pool"
	"github.com/berth-project/berth/csi/internal/pooldir"
	"github.com/berth-project/berth/csi/internal/volume"
	"github.com/berth-project/berth/internal/nearest"
	"github.com/berth-project/berth/proto/errs"
)

// compressionKey is the one setting of a volume: how what is written from now on is compressed. It is the property of
// that name (btrfs-property(8)) of the volume's root, which new files and directories get from theirs. A tenant who
// may set attributes may change it below; it is no limit.
const compressionKey = "compression"

func compressions() []string { return []string{"none", "lzo", "zlib", "zstd"} }

// CheckTuning implements volume.Tuner.
func (b *Backend) CheckTuning(v volume.Spec) error {
	for k, value := range v.Tuning {
		if k != compressionKey {
			return errs.InvalidArgument.Errorf("mutable_parameters.%s is not known here, nearest is %q; a pool of subvolumes has %s", k, nearest.To(k, []string{compressionKey}), compressionKey)
		}
		if !slices.Contains(compressions(), value) {
			return errs.InvalidArgument.Errorf("mutable_parameters.%s: %q, want one of %s", k, value, strings.Join(compressions(), ", "))
		}
	}
	return nil
}

// Tune implements volume.Tuner.
func (b *Backend) Tune(_ context.Context, v volume.Spec) error {
	d, f, err := b.Open(v.ID)
	if err != nil {
		return err
	}
	return errors.Join(compress(f, v), f.Close(), d.Close())
}

// tuneNew tunes a subvolume that is not in its place yet.
func (b *Backend) tuneNew(d *pool.Dir, v volume.Spec) error {
	f, err := d.Sub(pooldir.Path(pool.Building, v.ID))
	if err != nil {
		return err
	}
	return errors.Join(compress(f, v), f.Close())
}

// compress sets the property. The setting "none" and no setting at all are the same: no property.
func compress(root *os.File, v volume.Spec) error {
	const property = "btrfs.compression"
	how := v.Tuning[compressionKey]
	if how == "" || how == "none" {
		err := unix.Fremovexattr(int(root.Fd()), property)
		if errors.Is(err, unix.ENODATA) {
			return nil
		}
		return named(err, v)
	}
	return named(unix.Fsetxattr(int(root.Fd()), property, []byte(how), 0), v)
}

func named(err error, v volume.Spec) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("volume %s: the property btrfs.compression: %w", v.ID, err)
}
