package loop

import (
	"context"
	"errors"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/csi/internal/loopdev"
	"github.com/berth-project/berth/csi/internal/volume"
	"github.com/berth-project/berth/internal/nearest"
	"github.com/berth-project/berth/proto/errs"
)

// The settings of a volume: how far the kernel reads ahead on its device, and whether the pool's page cache is gone
// round. The defaults are the kernel's and loopdev's.
const (
	readAheadKey = "readAheadKiB"
	directIOKey  = "directIO"

	readAheadDefault = 128   // KiB, VM_READAHEAD_PAGES
	readAheadMost    = 65536 // KiB
)

type tuning struct {
	readAhead int64 // KiB
	directIO  bool
}

func parseTuning(set map[string]string) (t tuning, err error) {
	t = tuning{readAhead: readAheadDefault, directIO: true}
	known := []string{directIOKey, readAheadKey}
	for k, v := range set {
		switch k {
		case readAheadKey:
			n, perr := strconv.ParseInt(v, 10, 64)
			if perr != nil || n < 0 || n > readAheadMost || n%4 != 0 {
				err = errs.InvalidArgument.Errorf("mutable_parameters.%s: %q, want a multiple of 4 from 0 to %d", k, v, readAheadMost)
			}
			t.readAhead = n
		case directIOKey:
			if !slices.Contains([]string{"true", "false"}, v) {
				err = errs.InvalidArgument.Errorf("mutable_parameters.%s: %q, want true or false", k, v)
			}
			t.directIO = v == "true"
		default:
			err = errs.InvalidArgument.Errorf("mutable_parameters.%s is not known here, nearest is %q; a pool of files has %s", k, nearest.To(k, known), strings.Join(known, ", "))
		}
		if err != nil {
			return t, err
		}
	}
	return t, nil
}

// CheckTuning implements volume.Tuner.
func (b *Backend) CheckTuning(v volume.Spec) error {
	_, err := parseTuning(v.Tuning)
	return err
}

// Tune implements volume.Tuner: a device that is attached changes at once, the next one is attached so.
func (b *Backend) Tune(_ context.Context, v volume.Spec) error {
	d, f, err := b.open(v.ID, unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer d.Close() //nolint:errcheck // O_PATH
	defer f.Close() //nolint:errcheck // read only
	all, err := loopdev.Find(f)
	for _, dev := range all {
		err = errors.Join(err, tune(dev, v))
	}
	return err
}

// tuneNew tunes a device that was just attached, which has the defaults.
func (b *Backend) tuneNew(dev *os.File, v volume.Spec) error {
	if len(v.Tuning) == 0 {
		return nil
	}
	return tune(dev.Name(), v)
}

func tune(device string, v volume.Spec) error {
	t, err := parseTuning(v.Tuning)
	if err != nil {
		return err
	}
	return errors.Join(loopdev.SetReadAhead(device, t.readAhead<<10), loopdev.SetDirectIO(device, t.directIO))
}
