package agent

import (
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
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

// accept takes a delivery, or says why not and keeps what there is. It says whether there is something to apply: what is
// delivered again is not written, said or applied again. No lock is held over files.
func (a *Agent) accept(d Delivery) bool {
	err := d.Err
	if err == nil {
		err = a.usable(d.Fabric)
	}
	if a.refuse(err) {
		return false
	}
	a.mu.Lock()
	same := a.live.names == d.Names && reflect.DeepEqual(a.live.fabric, d.Fabric)
	a.live.refused, a.live.remarks, a.live.from, a.live.taken = "", d.Remarks, a.source.Name(), time.Now()
	if !same {
		a.live.fabric, a.live.names, a.live.unsaved = d.Fabric, d.Names, true
	}
	a.mu.Unlock()
	if !same {
		a.speak()
	}
	a.save()
	return !same
}

// save writes the snapshot, if the fabric in force is not the one in it. It is the loop's alone.
func (a *Agent) save() {
	if !a.live.unsaved {
		return
	}
	err := errors.Join(beforeSnapshot.Hit(), writeSnapshot(a.snapshotFile(), snapshot{a.live.fabric, a.live.names}), afterSnapshot.Hit())
	if err != nil {
		a.log.Warn("the snapshot is not written: a start without the source would use an older one", "error", err)
		return
	}
	a.live.unsaved = false
}

// refuse notes why a delivery is not taken, and says whether it is not.
func (a *Agent) refuse(err error) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil {
		if a.live.refused != err.Error() {
			a.log.Error("the fabric is refused, the last good state stays", "source", a.source.Name(), "error", err)
		}
		a.live.refused = err.Error()
		a.live.counts.refusals++
	}
	return err != nil
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

// speak tells the speaker the fabric in force. The loop does it on a new fabric and on every patrol: a password that came
// late, or is another now, is found without a new fabric. It is the loop's alone, without the lock: files are read.
func (a *Agent) speak() {
	if a.live.fabric == nil {
		return
	}
	left, err := a.speaker.Set(a.live.fabric, a.conf.Node)
	if err != nil {
		left = append(left, "bgp: the old configuration stays: "+err.Error())
	}
	a.mu.Lock()
	news := len(left) > 0 && !slices.Equal(left, a.live.unspoken)
	a.live.unspoken, a.live.spoken = left, time.Now()
	a.mu.Unlock()
	if news {
		a.log.Error("the BGP speaker does without a part of the fabric", "left out", left)
	}
}

// speakAgain speaks, and tries a snapshot that failed, if that was a patrol ago: events bring the loop's alarm nearer, and keep it from no patrol.
func (a *Agent) speakAgain(now time.Time) {
	if now.Sub(a.live.spoken) >= patrol {
		a.speak()
		a.save()
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
