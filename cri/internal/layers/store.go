package layers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/berth-project/berth/internal/atomicfile"
	"github.com/berth-project/berth/internal/failpoint"
	"github.com/berth-project/berth/proto/errs"
)

// Failpoints of the store, in the order in which a layer meets them.
var (
	fpStaged     = failpoint.New("layers.staged")
	fpBeforeSync = failpoint.New("layers.commit.before_sync")
	fpAfterSync  = failpoint.New("layers.commit.after_sync")
	fpRenamed    = failpoint.New("layers.commit.renamed")
	fpBeforeTrsh = failpoint.New("layers.trash.before")
	fpTrashed    = failpoint.New("layers.trash.after")
)

// The directories below a store's root. All are 0700: what is in a layer may be setuid.
const (
	layersDir     = "layers"
	tmpDir        = "tmp"
	trashDir      = "trash"
	quarantineDir = "quarantine"
	recordName    = "layer"
	contentName   = "fs"
)

// Info is what is known about a layer without looking into it. It is written next to the content.
type Info struct {
	Version int    `json:"version"`
	ID      string `json:"id"`
	Result
}

// layer is one entry of the store. Its life:
//
//	(absent) --Ensure--> building --ok--> staged --Commit--> committed --last Unref--> trash --> (gone)
//	                        |               |                    |
//	                        +--error: trash +--unused: trash     +--Verify finds damage--> quarantine
//
// A building layer is a flight; staged and committed ones are entries of Store.layers. Staged ones are in
// tmp/<session> and do not survive the process; a committed one is in layers/<id>, and was on the disk, synced,
// before it got that name.
type layer struct {
	info      Info
	dir       string // holds fs and the record
	committed bool
	refs      int
	idle      time.Time // when refs fell to 0; staged layers only
}

// Store keeps layers. Its methods may be called from many goroutines.
type Store struct {
	root    string
	session string // tmp/<pid>-<n>: everything else in tmp is a dead process's
	log     *slog.Logger
	slots   chan struct{}
	sync    *syncer
	sweep   chan struct{} // something is in the trash

	mu       sync.Mutex
	layers   map[string]*layer
	flights  map[string]*flight
	bytes    uint64 // of committed layers
	inodes   uint64
	serial   int
	suspects map[string]bool // committed before an unclean shutdown and not looked at since
}

// ChainID is the key of everything that depends on a layer and all below it (image-spec, config.md): the digest
// of a bottom layer's chain is its diffID.
func ChainID(parent, diff digest.Digest) digest.Digest {
	if parent == "" {
		return diff
	}
	return digest.FromString(parent.String() + " " + diff.String())
}

// ID names a layer by its diffID.
func ID(diff digest.Digest) string { return diff.Encoded() }

// FixID names the directory that fits a layer to the chain that ends with it.
func FixID(chain digest.Digest) string { return "fix-" + chain.Encoded() }

// Open reads the records of all layers. One that is damaged is moved to quarantine and forgotten. parallel is how
// many layers are built at once; at least 1. The store starts nothing; Run empties the trash.
func Open(root string, parallel int, log *slog.Logger) (*Store, error) {
	s := &Store{
		root: root, log: log, slots: make(chan struct{}, max(1, parallel)), sweep: make(chan struct{}, 1),
		layers: map[string]*layer{}, flights: map[string]*flight{}, suspects: map[string]bool{},
	}
	for _, d := range []string{"", layersDir, tmpDir, trashDir, quarantineDir} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o700); err != nil {
			return nil, err
		}
		if err := os.Chmod(filepath.Join(root, d), 0o700); err != nil {
			return nil, err
		}
	}
	var err error
	if s.session, err = os.MkdirTemp(filepath.Join(root, tmpDir), strconv.Itoa(os.Getpid())+"-*"); err != nil {
		return nil, err
	}
	spread(s.session)
	if s.sync, err = newSyncer(root); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(filepath.Join(root, layersDir))
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if err := s.load(e.Name()); err != nil {
			log.Warn("damaged layer put aside", "layer", e.Name(), "err", err)
			if err := s.quarantine(e.Name()); err != nil {
				return nil, err
			}
		}
	}
	return s, nil
}

func (s *Store) load(id string) error {
	dir := filepath.Join(s.root, layersDir, id)
	b, err := atomicfile.ReadSealed(filepath.Join(dir, recordName))
	if err != nil {
		return err
	}
	l := &layer{dir: dir, committed: true}
	if err := json.Unmarshal(b, &l.info); err != nil {
		return err
	}
	if l.info.Result, err = l.info.Unquote(); err != nil {
		return err
	}
	if l.info.ID != id || l.info.Version != 1 || l.info.Bytes < 0 || l.info.Inodes < 0 {
		return fmt.Errorf("record of layer %q, version %d", l.info.ID, l.info.Version)
	}
	fi, err := os.Lstat(filepath.Join(dir, contentName))
	if err != nil {
		return err
	}
	if !fi.IsDir() {
		return errors.New("content is no directory")
	}
	s.add(l)
	return nil
}

// add enters a committed layer. The caller holds mu, or is alone.
func (s *Store) add(l *layer) {
	s.layers[l.info.ID] = l
	s.bytes += uint64(l.info.Bytes)   //nolint:gosec // checked
	s.inodes += uint64(l.info.Inodes) //nolint:gosec // checked
}

// forget is the inverse of add, for staged layers too. The caller holds mu.
func (s *Store) forget(l *layer) {
	delete(s.layers, l.info.ID)
	delete(s.suspects, l.info.ID)
	if l.committed {
		s.bytes -= uint64(l.info.Bytes)   //nolint:gosec // checked
		s.inodes -= uint64(l.info.Inodes) //nolint:gosec // checked
	}
}

func (s *Store) quarantine(id string) error {
	from := filepath.Join(s.root, layersDir, id)
	to := filepath.Join(s.root, quarantineDir, fmt.Sprintf("%s.%d", id, time.Now().UnixNano()))
	if err := os.Rename(from, to); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("put aside layer %s: %w", id, err)
	}
	return nil
}

// Ref takes a reference on a layer that is there; false says that it is not.
func (s *Store) Ref(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.layers[id]
	if l != nil {
		l.refs++
	}
	return l != nil
}

// Unref gives references back, one per id. A committed layer that loses its last one is out of Usage at once and
// its directory in the trash; a staged one stays for a while, for the next try of a pull that failed.
func (s *Store) Unref(ids ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		l := s.layers[id]
		if l == nil {
			continue // lost to quarantine
		}
		if l.refs--; l.refs > 0 {
			continue
		}
		l.refs, l.idle = 0, time.Now()
		if l.committed {
			s.discard(l)
		}
	}
}

// discard moves a layer to the trash. A rename that fails costs disk space, which the next start gets back. The
// caller holds mu: nobody may commit a new layer of this name before the old one has left the place.
func (s *Store) discard(l *layer) {
	s.forget(l)
	if err := s.trash(l.dir, l.info.ID); err != nil {
		s.log.Warn("layer not removed", "layer", l.info.ID, "err", err)
	}
}

func (s *Store) trash(dir, name string) error {
	if err := fpBeforeTrsh.Hit(); err != nil {
		return err
	}
	to := filepath.Join(s.root, trashDir, fmt.Sprintf("%s.%d", name, time.Now().UnixNano()))
	if err := os.Rename(dir, to); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	select {
	case s.sweep <- struct{}{}:
	default:
	}
	return fpTrashed.Hit()
}

// Info returns what is known about a layer, staged or committed; false says that there is none.
func (s *Store) Info(id string) (Info, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.layers[id]; l != nil {
		return l.info, true
	}
	return Info{}, false
}

// Dir is the content directory of a committed layer; it stays valid while a reference is held.
func (s *Store) Dir(id string) string { return filepath.Join(s.root, layersDir, id, contentName) }

// Usage is the sum over committed layers.
func (s *Store) Usage() (bytes, inodes uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bytes, s.inodes
}

// Commit makes staged layers durable and gives them their names: one syncfs for all, then a rename each. Layers
// that are committed already cost nothing. The caller holds references on all of them. An error leaves them
// staged.
func (s *Store) Commit(_ context.Context, ids []string) error {
	if s.allCommitted(ids) {
		return nil
	}
	if err := fpBeforeSync.Hit(); err != nil {
		return err
	}
	if err := s.sync.Sync(); err != nil {
		return errs.Internal.Errorf("sync of the image store: %w", err)
	}
	if err := fpAfterSync.Hit(); err != nil {
		return err
	}
	if err := s.commitSynced(ids); err != nil {
		return err
	}
	return syncDir(filepath.Join(s.root, layersDir))
}

// commitSynced renames layers whose content is on the disk.
func (s *Store) commitSynced(ids []string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		l := s.layers[id]
		if l == nil {
			return errs.Aborted.Errorf("layer %s vanished before it was committed", id)
		}
		if l.committed {
			continue
		}
		to := filepath.Join(s.root, layersDir, id)
		if err := os.Rename(l.dir, to); err != nil {
			return fmt.Errorf("commit layer %s: %w", id, err)
		}
		l.dir, l.committed = to, true
		s.add(l)
		if err := fpRenamed.Hit(); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) allCommitted(ids []string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		if l := s.layers[id]; l == nil || !l.committed {
			return false
		}
	}
	return true
}

// TempDir makes a directory on the store's file system for the caller to remove; if the process dies, Sweep does.
func (s *Store) TempDir(prefix string) (string, error) {
	return os.MkdirTemp(s.session, prefix+"-*")
}

// isSession tells the session directories of this process from those of dead ones.
func (s *Store) isSession(name string) bool { return strings.EqualFold(filepath.Base(s.session), name) }
