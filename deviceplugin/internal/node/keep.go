package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"

	"github.com/berth-project/berth/deviceplugin/internal/health"
	"github.com/berth-project/berth/deviceplugin/internal/inventory"
	"github.com/berth-project/berth/internal/atomicfile"
)

// record is what is kept across restarts, as sealed JSON in <dir>/node.json. Readers of version 1 take any record
// with that number and refuse others: the list is then simply not known until the driver answers.
type record struct {
	Version   int                     `json:"version"`
	BootID    string                  `json:"bootID"`
	Inventory *inventory.Node         `json:"inventory"`
	Health    map[string]health.State `json:"health"`
}

const recordVersion = 1

func (n *Node) file() string { return filepath.Join(n.cfg.Dir, "node.json") }

// restore reads the record into s. A damaged one is moved aside.
func (n *Node) restore(s *State) error {
	b, err := atomicfile.ReadSealed(n.file())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if errors.Is(err, atomicfile.ErrDamaged) {
		to, qerr := atomicfile.Quarantine(n.file(), filepath.Join(n.cfg.Dir, "quarantine"))
		return errors.Join(fmt.Errorf("%w, moved to %s", err, to), qerr)
	}
	if err != nil {
		return err
	}
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return fmt.Errorf("%s: %w", n.file(), err)
	}
	if r.Version != recordVersion || r.Inventory == nil {
		return fmt.Errorf("%s: version %d, this program reads %d", n.file(), r.Version, recordVersion)
	}
	r.Inventory.Clean()
	s.Inventory = r.Inventory
	if r.BootID == n.cfg.BootID && r.Health != nil {
		s.Health = r.Health
	}
	return nil
}

// save writes the record if it has changed. It is not synced: after a power cut the driver is asked.
func (n *Node) save(old, next *State) error {
	if old.Live && reflect.DeepEqual(old.Inventory, next.Inventory) && reflect.DeepEqual(old.Health, next.Health) {
		return nil
	}
	if !next.Live {
		return nil
	}
	b, err := json.Marshal(record{Version: recordVersion, BootID: n.cfg.BootID, Inventory: next.Inventory, Health: next.Health})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(n.cfg.Dir, 0o700); err != nil {
		return err
	}
	return atomicfile.WriteSealed(n.file(), b, 0o600)
}
