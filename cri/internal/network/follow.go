package network

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/fsnotify/fsnotify"
)

// lookEvery is how often the directory itself is looked for: its making, and its replacement by another of the same
// name, are no events inside it.
const lookEvery = 5 * time.Second

// Run follows the configuration directory until ctx ends.
func (n *Network) Run(ctx context.Context) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch CNI configuration: %w", err)
	}
	defer w.Close() //nolint:errcheck // nothing to lose
	watched := n.follow(w, nil)
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-w.Events:
			if e.Name == n.cfg.ConfDir {
				watched = n.follow(w, nil) // a new one may have the number of the old
			}
			n.Reload()
		case err := <-w.Errors:
			n.log.Warn("watch CNI configuration", "error", err)
		case <-tick.C:
			watched = n.follow(w, watched)
		}
	}
}

// follow watches the directory that has the configured name now, and reads it if it is another one than was. It
// returns what is watched, or nil.
func (n *Network) follow(w *fsnotify.Watcher, was os.FileInfo) os.FileInfo {
	dir, err := os.Stat(n.cfg.ConfDir)
	if err == nil && was != nil && os.SameFile(dir, was) {
		return was
	}
	_ = w.Remove(n.cfg.ConfDir) // is it watched at all?
	if err == nil {
		err = w.Add(n.cfg.ConfDir)
	}
	n.Reload()
	if err != nil {
		return nil
	}
	return dir
}
