// Package store keeps the daemon's records on disk: one sealed file per object, replaced by rename, so that each
// is old or new and a damaged one affects one object alone. It knows nothing of what the records say.
//
// No request waits for the disk: files are synced in the background, in groups (group commit). That is safe,
// because after a daemon crash the page cache still has every byte, and after a power cut no container is left
// whose record could be missing; at most the last second of attempts and exit codes is lost with the power.
package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/berth-project/berth/internal/atomicfile"
	"github.com/berth-project/berth/internal/lockfile"
)

// quarantine is the directory of records that nobody can read.
const quarantine = "quarantine"

// window is how long a changed record may wait for its sync.
const window = time.Second

// Store is a directory of records by kind and id. Its methods are safe for concurrent use on different objects;
// the caller orders those on one object.
type Store struct {
	dir  string
	log  *slog.Logger
	lock *lockfile.Lock

	mu      sync.Mutex
	dirty   map[string]bool // paths of files and directories to sync
	damaged []string        // files put into quarantine since Open
}

// Open takes the store in dir, making it if needed. A second process gets an error at once and touches nothing.
func Open(dir string, log *slog.Logger) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	lock, err := lockfile.Take(filepath.Join(dir, "lock"))
	var held *lockfile.Held
	if errors.As(err, &held) {
		return nil, fmt.Errorf("another berth-cri uses %s: stop it first, or configure another root: %w", dir, err)
	} else if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	return &Store{dir: dir, log: log, lock: lock, dirty: map[string]bool{}}, nil
}

// Close gives the store back. Records written since the last sync are synced first.
func (s *Store) Close() error {
	s.flush()
	return s.lock.Close()
}

// Run syncs changed records until ctx ends.
func (s *Store) Run(ctx context.Context) error {
	tick := time.NewTicker(window)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.flush()
		case <-ctx.Done():
			s.flush()
			return nil
		}
	}
}

func (s *Store) path(kind, id string) string { return filepath.Join(s.dir, kind, id) }

// Put makes data the record of an object.
func (s *Store) Put(kind, id string, data []byte) error {
	p := s.path(kind, id)
	err := atomicfile.WriteSealed(p, data, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
			return err
		}
		err = atomicfile.WriteSealed(p, data, 0o600)
	}
	if err != nil {
		return fmt.Errorf("record of %s %s: %w", kind, id, err)
	}
	s.mark(p)
	return nil
}

// Delete removes an object's record; one that is not there is fine.
func (s *Store) Delete(kind, id string) error {
	p := s.path(kind, id)
	if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("record of %s %s: %w", kind, id, err)
	}
	s.mark(filepath.Dir(p))
	return nil
}

// Load reads every record of a kind. Damaged ones are moved to the quarantine directory, named in the log, and
// left out; leftovers of interrupted writes are removed.
func (s *Store) Load(kind string) (map[string][]byte, error) {
	all := map[string][]byte{}
	ents, err := os.ReadDir(filepath.Join(s.dir, kind))
	if errors.Is(err, fs.ErrNotExist) {
		return all, nil
	}
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	for _, e := range ents {
		p := s.path(kind, e.Name())
		if strings.HasPrefix(e.Name(), ".tmp-") {
			if err := os.Remove(p); err != nil {
				s.log.Warn("leftover of an interrupted write stays", "path", p, "error", err)
			}
			continue
		}
		data, err := atomicfile.ReadSealed(p)
		if err != nil {
			s.Quarantine(kind, e.Name(), err)
			continue
		}
		all[e.Name()] = data
	}
	return all, nil
}

// Quarantine moves a record that nobody can read out of the way, names it in the log with the cause, and remembers it
// for Damaged. The evidence stays until somebody deletes it.
func (s *Store) Quarantine(kind, id string, cause error) {
	to, err := atomicfile.Quarantine(s.path(kind, id), filepath.Join(s.dir, quarantine, kind))
	s.log.Error("damaged record quarantined", "kind", kind, "id", id, "to", to, "error", errors.Join(cause, err))
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		to = s.path(kind, id)
	}
	s.damaged = append(s.damaged, to)
}

// Damaged are the files of the records that were put into quarantine since Open.
func (s *Store) Damaged() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.damaged)
}

func (s *Store) mark(path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dirty[path] = true
	s.dirty[filepath.Dir(path)] = true
}

// flush syncs what changed. A file that was removed meanwhile needs none; a failed sync is reported and not
// retried, because after it the kernel may have dropped the data (fsyncgate): the record is written anew with
// the object's next change.
func (s *Store) flush() {
	s.mu.Lock()
	dirty := maps.Clone(s.dirty)
	clear(s.dirty)
	s.mu.Unlock()
	for p := range dirty {
		f, err := os.Open(p) //nolint:gosec // our own path
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = errors.Join(f.Sync(), f.Close())
		}
		if err != nil {
			s.log.Error("record not synced", "path", p, "error", err)
		}
	}
}
