package volgroup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/berth-project/berth/proto/errs"
)

// limit is how long one command may take. LVM is never killed because a caller went away: between suspending a device
// and resuming it that would leave the device, and whoever writes to it, suspended.
const limit = 2 * time.Minute

// settings are ours for every command, before the machine's lvm.conf: neither wait for udev nor leave the device nodes
// to it, so that a node without udev, or one whose udev is slow, works the same.
const settings = "activation{udev_sync=0 udev_rules=0 verify_udev_operations=0} global{notify_dbus=0} log{prefix=\"\"}"

const (
	outputMost = 16 << 20 // bytes of a report: some 20,000 volumes
	errorMost  = 4 << 10
)

// run runs one verb that changes something, one at a time: LVM locks the group anyway, and a crowd of its processes
// would only wait.
func (g *Group) run(ctx context.Context, verb string, args ...string) ([]byte, error) {
	g.changes.Add(1)
	defer g.changes.Add(1)
	return g.runIn(ctx, g.turn, verb, args...)
}

func (g *Group) runIn(ctx context.Context, turn chan struct{}, verb string, args ...string) ([]byte, error) {
	select {
	case turn <- struct{}{}:
		defer func() { <-turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, g.program, append([]string{verb, "--config", settings}, args...)...)
	cmd.Env = []string{"LC_ALL=C", "LVM_SUPPRESS_FD_WARNINGS=1", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	out, said := &bounded{most: outputMost}, &bounded{most: errorMost}
	cmd.Stdout, cmd.Stderr = out, said
	err := cmd.Run()
	if err == nil && out.cut {
		err = fmt.Errorf("more than %d bytes of output", outputMost)
	}
	if err == nil {
		return out.Bytes(), nil
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil, errs.FailedPrecondition.Errorf("%s is not installed on this node: install lvm2, or say where it is (program): %w", g.program, err)
	}
	return nil, classify(g.name, fmt.Errorf("lvm %s: %w: %s", verb, errors.Join(err, ctx.Err()), strings.Join(strings.Fields(said.String()), " ")))
}

// classify gives LVM's refusals, which it only says in words, their class. Words that it does not know stay Internal.
func classify(group string, err error) error {
	text := strings.ToLower(err.Error())
	has := func(words ...string) bool {
		for _, w := range words {
			if strings.Contains(text, w) {
				return true
			}
		}
		return false
	}
	switch {
	case has(`volume group "`+strings.ToLower(group)+`" not found`, "while pvs are missing", "partial mode", "missing pv"):
		return errs.Unavailable.Errorf("volume group %s is not there, or not all of it: attach its disks: %w", group, err)
	case has("insufficient free space", "insufficient suitable", "reached threshold", "no free extents", "insufficient extents", "not enough free"):
		return errs.ResourceExhausted.Errorf("volume group %s has no room: %w", group, err)
	case has(" in use"):
		return errs.FailedPrecondition.Errorf("it is still in use: end the process or the mount that holds it: %w", err)
	case has("read-only", "cannot change metadata"):
		return errs.Unavailable.Errorf("volume group %s is read-only: %w", group, err)
	}
	return err
}

// bounded keeps the first bytes that are written to it.
type bounded struct {
	bytes.Buffer
	most int
	cut  bool
}

var _ io.Writer = (*bounded)(nil)

// Write implements io.Writer; it takes everything and keeps what fits.
func (b *bounded) Write(p []byte) (int, error) {
	keep := p[:min(len(p), b.most-b.Len())]
	b.cut = b.cut || len(keep) < len(p)
	if _, err := b.Buffer.Write(keep); err != nil {
		return 0, err
	}
	return len(p), nil
}
