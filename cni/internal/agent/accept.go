package agent

import (
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/berth-project/berth/cni/internal/fabric"
	"github.com/berth-project/berth/cni/internal/overlay"
	"github.com/berth-project/berth/internal/atomicfile"
	"github.com/berth-project/berth/internal/failpoint"
)

var (
	beforeSnapshot = failpoint.New("netd.before_snapshot")
	afterSnapshot  = failpoint.New("netd.after_snapshot")
)

// errAbsent is a fabric without this node: a source that has just started to lose its objects looks like this, and
// nothing is taken down on its word.
var errAbsent = errors.New("this node is not in the fabric; the last good state is kept")

// accept takes a delivery, or says why not and keeps what there is.
func (a *Agent) accept(d Delivery) bool {
	err := d.Err
	if err == nil {
		err = a.usable(d.Fabric)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil {
		if a.live.refused != err.Error() {
			a.log.Error("the fabric is refused, the last good state stays", "source", a.source.Name(), "error", err)
		}
		a.live.refused = err.Error()
		a.live.counts.refusals++
		return false
	}
	a.live.fabric, a.live.names, a.live.refused, a.live.remarks = d.Fabric, d.Names, "", d.Remarks
	a.live.from, a.live.taken = a.source.Name(), time.Now()
	a.setSpeaker(d.Fabric)
	if err := errors.Join(beforeSnapshot.Hit(), writeSnapshot(a.snapshotFile(), snapshot{d.Fabric, d.Names}), afterSnapshot.Hit()); err != nil {
		a.log.Warn("the snapshot is not written: a start without the source would use an older one", "error", err)
	}
	return true
}

func (a *Agent) usable(f *fabric.Fabric) error {
	if err := f.Validate(); err != nil {
		return err
	}
	if _, ok := f.Node(a.conf.Node); !ok {
		return fmt.Errorf("node %q of %d: %w", a.conf.Node, len(f.Nodes), errAbsent)
	}
	return nil
}

// setSpeaker is with the lock held.
func (a *Agent) setSpeaker(f *fabric.Fabric) {
	if err := a.speaker.Set(f, a.conf.Node); err != nil {
		a.log.Error("the BGP speaker keeps its old configuration", "error", err)
		a.live.remarks = append(a.live.remarks[:len(a.live.remarks):len(a.live.remarks)], "bgp: "+err.Error())
	}
}

// snapshot is the last good fabric on disk.
type snapshot struct {
	Fabric *fabric.Fabric `yaml:"fabric"`
	Names  overlay.Names  `yaml:"names"`
}

func (a *Agent) snapshotFile() string { return filepath.Join(a.conf.Root, "fabric") }

func writeSnapshot(path string, s snapshot) error {
	b, err := yaml.Marshal(s)
	if err != nil {
		return err
	}
	return atomicfile.WriteSealed(path, b, 0o600)
}

func readSnapshot(path string) (s snapshot, err error) {
	b, err := atomicfile.ReadSealed(path)
	if err != nil {
		return s, err
	}
	if err := yaml.Unmarshal(b, &s); err != nil {
		return s, fmt.Errorf("%s: %w", path, err)
	}
	if s.Fabric == nil {
		return s, fmt.Errorf("%s holds no fabric", path)
	}
	return s, s.Fabric.Validate()
}
