package pod

import (
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/berth-project/berth/internal/removal"
)

func (m *Manager) trashDir() string { return filepath.Join(m.cfg.Root, "trash") }

// trash removes a directory: renamed away at once, deleted in the background.
func (m *Manager) trash(dir string) error {
	to := filepath.Join(m.trashDir(), newID())
	err := os.Rename(dir, to)
	if errors.Is(err, os.ErrNotExist) {
		if _, serr := os.Lstat(dir); errors.Is(serr, os.ErrNotExist) {
			return nil
		}
		if err := os.MkdirAll(m.trashDir(), 0o700); err != nil {
			return err
		}
		err = os.Rename(dir, to)
	}
	if err != nil {
		return err
	}
	m.work.Add(1)
	go func() {
		defer m.work.Done()
		m.burn(to)
	}()
	return nil
}

// burn deletes what was thrown away, until the daemon ends: emptyTrash of the next one goes on. A disk that is full or
// ill for a moment is asked again.
func (m *Manager) burn(dir string) {
	for wait := 100 * time.Millisecond; ; wait *= 4 {
		err := removal.Tree(m.life, dir)
		if err == nil {
			return
		}
		const patience = 30 * time.Second
		select {
		case <-time.After(wait):
		case <-m.life.Done():
			return
		}
		if wait > patience {
			m.cfg.Log.Warn("trash stays until the next start", "path", dir, "error", err)
			return
		}
	}
}

// emptyTrash deletes what an earlier daemon had thrown away but not deleted.
func (m *Manager) emptyTrash() {
	m.work.Add(1)
	go func() {
		defer m.work.Done()
		old, err := os.ReadDir(m.trashDir())
		for _, e := range old {
			err = errors.Join(err, removal.Tree(m.life, filepath.Join(m.trashDir(), e.Name())))
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) && m.life.Err() == nil {
			m.cfg.Log.Warn("trash not emptied", "error", err)
		}
	}()
}
