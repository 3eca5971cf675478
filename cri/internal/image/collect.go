package image

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/berth-project/berth/internal/atomicfile"
)

const (
	cleanName  = "clean"
	bootIDPath = "/proc/sys/kernel/random/boot_id"
)

// collect throws away what no record needs: layers, and configs, of pulls that were cut off, and the working
// directories of dead processes. It runs once, before anything else, and never takes what a container may use:
// a removed image that is held keeps its record.
func (s *Service) collect() {
	if err := s.store.Sweep(); err != nil {
		s.log.Warn("leftovers not removed", "err", err)
	}
	dir := filepath.Join(s.cfg.Root, configsDir)
	files, err := os.ReadDir(dir)
	if err != nil {
		s.log.Warn("leftovers not removed", "err", err)
	}
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	for _, f := range files {
		s.mu.Lock()
		e := s.images["sha256:"+f.Name()]
		s.mu.Unlock()
		if e == nil && !strings.HasPrefix(f.Name(), ".") {
			if err := os.Remove(filepath.Join(dir, f.Name())); err != nil {
				s.log.Warn("leftover config not removed", "err", err)
			}
		}
	}
}

// incompleteGrace is how long an image that lost a layer may wait for the pull that mends it.
const incompleteGrace = time.Hour

// dropIncomplete gives up images that lost something and that nobody has pulled again or holds. The kubelet does
// not see them, so nobody else would.
func (s *Service) dropIncomplete() {
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	s.mu.Lock()
	var refs, ids []string
	for id, e := range s.images {
		if e.incomplete && s.retained && !s.held(id) {
			delete(s.images, id)
			ids, refs = append(ids, id), append(refs, e.refs...)
		}
	}
	s.mu.Unlock()
	for _, id := range ids {
		s.log.Warn("image that lost a layer was not pulled again: removed", "image", id)
		if err := s.erase(id); err != nil {
			s.log.Warn("image record not removed", "image", id, "err", err)
		}
	}
	s.store.Unref(refs...)
}

// sameBoot tells whether the store was last used in this boot, or was closed cleanly: then its page cache was
// never lost and no layer needs a second look. It leaves the mark that the next Open reads.
func (s *Service) sameBoot() bool {
	boot, err := os.ReadFile(bootIDPath)
	if err != nil {
		return false
	}
	path := filepath.Join(s.cfg.Root, cleanName)
	was, err := atomicfile.ReadSealed(path)
	ok := err == nil && (string(was) == string(boot) || string(was) == cleanName)
	if err := atomicfile.WriteSealed(path, boot, 0o600); err != nil {
		s.log.Warn("boot not recorded", "err", err)
	}
	return ok
}

// markClean records that everything is on the disk, so that after the next boot nothing is suspected.
func (s *Service) markClean() error {
	d, err := os.Open(s.cfg.Root)
	if err != nil {
		return err
	}
	return errors.Join(syncFS(d), d.Close(), atomicfile.WriteSealed(filepath.Join(s.cfg.Root, cleanName), []byte(cleanName), 0o600))
}
