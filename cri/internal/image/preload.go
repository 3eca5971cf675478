package image

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/berth-project/berth/internal/atomicfile"
)

// preloaded is what is remembered of a file that was imported: while name, size and time stay the same it is not
// imported again, so that an image that somebody removed stays removed.
type preloaded struct {
	Name  string    `json:"name"`
	Size  int64     `json:"size"`
	MTime time.Time `json:"mtime"`
}

var preloadSuffixes = []string{".tar", ".tar.gz", ".tgz", ".tar.zst"}

// preload imports new archives of the preload directory, in the order of their names. One that fails is logged
// and tried again at the next start.
func (s *Service) preload(ctx context.Context) {
	if s.cfg.PreloadDir == "" {
		return
	}
	files, err := os.ReadDir(s.cfg.PreloadDir)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			s.log.Warn("preload directory not read", "err", err)
		}
		return
	}
	path := filepath.Join(s.cfg.Root, "preloaded")
	known := map[string]preloaded{}
	if b, err := atomicfile.ReadSealed(path); err == nil {
		_ = json.Unmarshal(b, &known) //nolint:errcheck // sealed by this program; at worst imported again
	}
	seen := map[string]preloaded{}
	for _, f := range files {
		if ctx.Err() != nil {
			return
		}
		p, ok := candidate(f)
		if !ok {
			continue
		}
		if known[p.Name] != p && !s.preloadFile(ctx, p.Name) {
			continue
		}
		seen[p.Name] = p
		b, err := json.Marshal(seen)
		if err == nil {
			err = atomicfile.WriteSealed(path, b, 0o600)
		}
		if err != nil {
			s.log.Warn("preload not recorded", "file", p.Name, "err", err)
		}
	}
}

func candidate(f fs.DirEntry) (preloaded, bool) {
	for _, suffix := range preloadSuffixes {
		if !strings.HasSuffix(f.Name(), suffix) {
			continue
		}
		fi, err := f.Info()
		if err != nil || !fi.Mode().IsRegular() {
			return preloaded{}, false
		}
		return preloaded{Name: f.Name(), Size: fi.Size(), MTime: fi.ModTime().UTC().Round(0)}, true
	}
	return preloaded{}, false
}

func (s *Service) preloadFile(ctx context.Context, name string) bool {
	f, err := os.Open(filepath.Join(s.cfg.PreloadDir, name))
	if err == nil {
		defer f.Close() //nolint:errcheck // read only
		var imgs []*Image
		if imgs, err = s.Import(ctx, f); err == nil {
			s.log.Info("preloaded", "file", name, "images", len(imgs))
			return true
		}
	}
	s.log.Warn("preload failed", "file", name, "err", err)
	return false
}
