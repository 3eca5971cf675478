package image

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/cri/internal/layers"
	"github.com/berth-project/berth/cri/internal/registry"
	"github.com/berth-project/berth/internal/atomicfile"
	"github.com/berth-project/berth/internal/failpoint"
)

const (
	recordsDir    = "images"
	configsDir    = "configs"
	quarantineDir = "quarantine"
	recordSuffix  = ".image"
)

var (
	fpBeforeRecord = failpoint.New("image.record.before")
	fpAfterRecord  = failpoint.New("image.record.after")
	fpAfterConfig  = failpoint.New("image.config.after")
)

// record is what is kept of an image, sealed, in images/<hex>.image.
type record struct {
	Version int `json:"version"`
	// Seq orders records: where two claim a name, the newer has it.
	Seq         int64             `json:"seq"`
	ID          string            `json:"id"`
	Tags        []string          `json:"tags,omitempty"`
	Digests     []string          `json:"digests,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Layers      []recordLayer     `json:"layers"`
	// Removed images have no names any more and exist for the containers that use them.
	Removed bool `json:"removed,omitempty"`
}

// recordLayer is one layer of an image, bottom first.
type recordLayer struct {
	DiffID digest.Digest `json:"diffID"`
	Chain  digest.Digest `json:"chainID"`
	// Fix says that a directory layers.FixID(Chain) is stacked above the layer.
	Fix bool `json:"fix,omitempty"`
}

// entry is an image in memory. Its life:
//
//	pulled --Remove--> gone                      (nobody holds it)
//	   |  \--Remove--> removed --Release--> gone (a container does)
//	   +--a layer is lost--> incomplete --pulled again--> pulled
//
// Removed and incomplete images are hidden: not listed, not found.
type entry struct {
	rec        record
	config     *ocispec.Image
	configSize int
	refs       []string // references held in the layer store
	incomplete bool
	image      *Image // nil while hidden
}

func (e *entry) hidden() bool { return e.rec.Removed || e.incomplete }

// ids are the layer-store names that the record needs, each once.
func (r *record) ids() []string {
	var out []string
	for _, l := range r.Layers {
		out = append(out, layers.ID(l.DiffID))
		if l.Fix {
			out = append(out, layers.FixID(l.Chain))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (s *Service) recordPath(id string) string {
	return filepath.Join(s.cfg.Root, recordsDir, strings.TrimPrefix(id, "sha256:")+recordSuffix)
}

func (s *Service) configPath(id string) string {
	return filepath.Join(s.cfg.Root, configsDir, strings.TrimPrefix(id, "sha256:"))
}

// load reads all records. The caller is alone.
func (s *Service) load() error {
	dir := filepath.Join(s.cfg.Root, recordsDir)
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), recordSuffix) {
			if err := os.RemoveAll(filepath.Join(dir, f.Name())); err != nil { // a write that did not finish
				return err
			}
			continue
		}
		e, err := s.loadRecord(filepath.Join(dir, f.Name()))
		if err != nil {
			s.log.Warn("damaged image record put aside", "file", f.Name(), "err", err)
			if _, err := atomicfile.Quarantine(filepath.Join(dir, f.Name()), filepath.Join(s.cfg.Root, quarantineDir)); err != nil {
				return err
			}
			continue
		}
		s.images[e.rec.ID] = e
		s.seq = max(s.seq, e.rec.Seq)
	}
	s.settleNames()
	for _, e := range s.images {
		e.image = s.describe(e)
	}
	return nil
}

func (s *Service) loadRecord(path string) (*entry, error) {
	b, err := atomicfile.ReadSealed(path)
	if err != nil {
		return nil, err
	}
	e := &entry{}
	if err := json.Unmarshal(b, &e.rec); err != nil {
		return nil, err
	}
	if err := registry.CheckDigest(digest.Digest(e.rec.ID)); err != nil {
		return nil, err
	}
	if e.rec.Version != 1 || s.recordPath(e.rec.ID) != path {
		return nil, fmt.Errorf("record version %d of image %s", e.rec.Version, e.rec.ID)
	}
	for _, l := range e.rec.Layers {
		if err := errors.Join(registry.CheckDigest(l.DiffID), registry.CheckDigest(l.Chain)); err != nil {
			return nil, err
		}
	}
	if e.config, e.configSize, err = s.loadConfig(e.rec.ID); err != nil {
		s.log.Warn("image must be pulled again", "image", e.rec.ID, "err", err)
		e.incomplete = true
	}
	s.hold(e)
	return e, nil
}

// loadConfig reads a config and checks it against its digest; a wrong one is put aside.
func (s *Service) loadConfig(id string) (*ocispec.Image, int, error) {
	b, err := os.ReadFile(s.configPath(id))
	if err != nil {
		return nil, 0, err
	}
	if digest.FromBytes(b).String() != id {
		_, err := atomicfile.Quarantine(s.configPath(id), filepath.Join(s.cfg.Root, quarantineDir))
		return nil, 0, errors.Join(errors.New("config is damaged"), err)
	}
	c, err := parseConfig(b)
	return c, len(b), err
}

// hold takes a reference on every layer of e that is there. One that is not makes e incomplete.
func (s *Service) hold(e *entry) {
	e.refs = e.refs[:0]
	for _, id := range e.rec.ids() {
		if s.store.Ref(id) {
			e.refs = append(e.refs, id)
		} else {
			s.log.Warn("image must be pulled again", "image", e.rec.ID, "missing", id)
			e.incomplete = true
		}
	}
}

// settleNames gives every name to the newest record that has it. The caller holds mu or is alone.
func (s *Service) settleNames() {
	owner := map[string]*entry{}
	for _, e := range s.images {
		for _, n := range slices.Concat(e.rec.Tags, e.rec.Digests) {
			if o := owner[n]; o == nil || o.rec.Seq < e.rec.Seq {
				owner[n] = e
			}
		}
	}
	clear(s.names)
	for n, e := range owner {
		if !e.hidden() {
			s.names[n] = e.rec.ID
		}
	}
	for _, e := range s.images {
		not := func(n string) bool { return owner[n] != e }
		e.rec.Tags = slices.DeleteFunc(slices.Clone(e.rec.Tags), not)
		e.rec.Digests = slices.DeleteFunc(slices.Clone(e.rec.Digests), not)
	}
}

// saveConfig stores a config under its digest, durably.
func (s *Service) saveConfig(id string, b []byte) error {
	if have, err := os.ReadFile(s.configPath(id)); err == nil && bytes.Equal(have, b) {
		return nil
	}
	if err := writeDurably(s.configPath(id), b); err != nil {
		return err
	}
	return fpAfterConfig.Hit()
}

// save writes a record durably. The caller holds the turn.
func (s *Service) save(rec *record) error {
	b, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	if err := fpBeforeRecord.Hit(); err != nil {
		return err
	}
	if err := writeDurably(s.recordPath(rec.ID), atomicfile.Seal(b)); err != nil {
		return fmt.Errorf("record of image %s: %w", rec.ID, err)
	}
	return fpAfterRecord.Hit()
}

// writeDurably is atomicfile.Write that is on the disk when it returns.
func writeDurably(path string, data []byte) error {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, werr := f.Write(data)
	if err := errors.Join(werr, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	if err := os.Rename(tmp, path); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// erase removes the record of an image, and its config. The caller holds the turn. Nothing is synced: an image
// that comes back after a power cut is found incomplete, or is removed again.
func (s *Service) erase(id string) error {
	var err error
	for _, p := range []string{s.recordPath(id), s.configPath(id)} {
		if rerr := os.Remove(p); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}
	return err
}

func syncFS(f *os.File) error { return os.NewSyscallError("syncfs", unix.Syncfs(int(f.Fd()))) }
