// Package volgroup works on one LVM volume group, by LVM's own program: what is in it, and making, renaming, extending,
// activating and removing logical volumes. It knows nothing of volumes of ours; the only volumes that it changes are
// those that its caller names.
//
// The program is started by its absolute path with a list of arguments, never by a shell, one at a time, with a limit
// of time and of output (lvm(8), lvmreport(7); tried with LVM 2.03.16). What it says is parsed from JSON, and of its refusals, which
// it only words, the known ones get a class.
package volgroup

import (
	"context"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"time"

	"github.com/berth-project/berth/csi/internal/devmapper"
	"github.com/berth-project/berth/proto/errs"
)

// Group is one volume group. Use [New].
type Group struct {
	program, name string
	turn, reading chan struct{}
	changes       atomic.Int64
}

var names = regexp.MustCompile(`^[a-zA-Z0-9_.+][a-zA-Z0-9_.+-]{0,126}$`) // lvm(8): VALID NAMES

// ValidName says whether a group or a volume may be called so.
func ValidName(name string) bool { return names.MatchString(name) && name != "." && name != ".." }

// New is the group called name, worked on by the program at an absolute path. It starts nothing.
func New(program, name string) (*Group, error) {
	if !filepath.IsAbs(program) {
		return nil, errs.InvalidArgument.Errorf("program: %q is not an absolute path", program)
	}
	if !ValidName(name) {
		return nil, errs.InvalidArgument.Errorf("volume_group: %q is no name of a volume group", name)
	}
	return &Group{program: program, name: name, turn: make(chan struct{}, 1), reading: make(chan struct{}, 1)}, nil
}

// Name of the group.
func (g *Group) Name() string { return g.name }

// Changes is a number that another one follows whenever this process has changed something in the group.
func (g *Group) Changes() int64 { return g.changes.Load() }

func (g *Group) of(volume string) string { return g.name + "/" + volume }

// Device is what the kernel has of a volume; one that is not active is os.ErrNotExist. It starts no program.
func (g *Group) Device(volume string) (devmapper.Device, error) {
	escape := func(s string) string { return strings.ReplaceAll(s, "-", "--") }
	return devmapper.Find(escape(g.name) + "-" + escape(volume))
}

// Create makes a volume of at least size bytes, whose blocks hold whatever they held, active, with a tag.
func (g *Group) Create(ctx context.Context, volume, tag string, size int64) error {
	_, err := g.run(ctx, "lvcreate", "--yes", "--type", "linear", "--wipesignatures", "n", "--zero", "n",
		"--addtag", tag, "--size", bytesOf(size), "--name", volume, g.name)
	return err
}

// CreateThin makes a thin volume of at least size bytes in a thin pool, active, with a tag.
func (g *Group) CreateThin(ctx context.Context, pool, volume, tag string, size int64) error {
	_, err := g.run(ctx, "lvcreate", "--yes", "--type", "thin", "--wipesignatures", "n",
		"--addtag", tag, "--virtualsize", bytesOf(size), "--name", volume, "--thinpool", pool, g.name)
	return err
}

// Snapshot makes a thin snapshot of a thin volume, which LVM freezes meanwhile if it is mounted; inactive, with a tag.
func (g *Group) Snapshot(ctx context.Context, origin, volume, tag string) error {
	_, err := g.run(ctx, "lvcreate", "--yes", "--snapshot", "--setactivationskip", "y",
		"--addtag", tag, "--name", volume, g.of(origin))
	return err
}

// Extend makes a volume at least size bytes large, on the extents that are named ("/dev/sda:0-9") or any; one that is
// as large already must not be given.
func (g *Group) Extend(ctx context.Context, volume string, size int64, extents ...string) error {
	_, err := g.run(ctx, "lvextend", append([]string{"--size", bytesOf(size), g.of(volume)}, extents...)...)
	return err
}

// Reduce makes a volume, of which what is cut off is lost, size bytes large.
func (g *Group) Reduce(ctx context.Context, volume string, size int64) error {
	_, err := g.run(ctx, "lvreduce", "--force", "--yes", "--size", bytesOf(size), g.of(volume))
	return err
}

// Rename gives a volume another name, which must be free; in one step, active or not.
func (g *Group) Rename(ctx context.Context, volume, to string) error {
	_, err := g.run(ctx, "lvrename", g.name, volume, to)
	return err
}

// Activate makes the device of a volume, a snapshot's too.
func (g *Group) Activate(ctx context.Context, volume string) (devmapper.Device, error) {
	if d, err := g.Device(volume); err == nil {
		return d, nil
	}
	if _, err := g.run(ctx, "lvchange", "--activate", "y", "--ignoreactivationskip", g.of(volume)); err != nil {
		return devmapper.Device{}, err
	}
	return g.Device(volume)
}

// Deactivate removes the device of a volume; one that is in use is FailedPrecondition, none is fine.
func (g *Group) Deactivate(ctx context.Context, volume string) error {
	if _, err := g.Idle(ctx, volume); err != nil {
		return ignoreMissing(err)
	}
	_, err := g.run(ctx, "lvchange", "--activate", "n", g.of(volume))
	return err
}

// idleFor is how long a device may be open before it counts as in use: udev looks into what is new.
const idleFor = time.Second

// Idle is the device of a volume that nobody has open; one that is in use is FailedPrecondition, none os.ErrNotExist.
func (g *Group) Idle(ctx context.Context, volume string) (devmapper.Device, error) {
	for end := time.Now().Add(idleFor); ; {
		d, err := g.Device(volume)
		if err != nil || d.Open == 0 {
			return d, err
		}
		if time.Now().After(end) {
			return d, errs.FailedPrecondition.Errorf("%s is still in use through %s: end the process or the mount that holds it", g.of(volume), d.Path())
		}
		select {
		case <-ctx.Done():
			return d, ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Remove removes a volume and its device.
func (g *Group) Remove(ctx context.Context, volume string) error {
	_, err := g.run(ctx, "lvremove", "--yes", g.of(volume))
	return err
}

func bytesOf(n int64) string { return fmt.Sprintf("%db", n) }
