package image

import (
	"errors"
	"slices"

	"github.com/berth-project/berth/proto/errs"
)

// Use lends the image's layers to holder, a container's id, until Release. It may be called again; a holder has
// one image at a time. A layer that turns out damaged after an unclean shutdown makes this, and from then on Get,
// errs.NotFound, and the next Pull mends it.
func (s *Service) Use(holder, imageID string) (Rootfs, error) {
	s.mu.Lock()
	e := s.find(imageID)
	if e == nil && s.holders[holder] != "" && s.holders[holder] == imageID { // removed meanwhile, but still held
		e = s.images[imageID]
	}
	if e == nil {
		s.mu.Unlock()
		return Rootfs{}, errs.NotFound.Errorf("image %q: %w", imageID, errs.NotFound)
	}
	s.holders[holder] = e.rec.ID // from here on nothing of it is deleted
	refs := slices.Clone(e.refs)
	s.mu.Unlock()

	var damage error
	for _, id := range refs {
		damage = errors.Join(damage, s.store.Verify(id))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if damage != nil {
		s.spoil(refs)
		delete(s.holders, holder)
		return Rootfs{}, errs.NotFound.Errorf("image %s must be pulled again: %w", e.rec.ID, damage)
	}
	return s.rootfs(&e.rec), nil
}

// spoil makes every image incomplete that has lost one of the layers. The caller holds mu.
func (s *Service) spoil(ids []string) {
	for _, e := range s.images {
		for _, id := range ids {
			if _, ok := s.store.Info(id); !ok && slices.Contains(e.refs, id) {
				e.refs = slices.DeleteFunc(e.refs, func(r string) bool { return r == id })
				e.incomplete, e.image = true, nil
			}
		}
	}
	s.settleNames()
	s.publish()
}

// Release ends a loan; unknown holders are fine.
func (s *Service) Release(holder string) {
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	s.mu.Lock()
	id := s.holders[holder]
	delete(s.holders, holder)
	s.mu.Unlock()
	s.reap(id)
}

// Retain tells, once after the daemon has recovered, which containers exist and what they use: exactly these.
// Until then nothing that a forgotten container might use is deleted.
func (s *Service) Retain(holders map[string]string) {
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	s.mu.Lock()
	clear(s.holders)
	for h, id := range holders {
		if e := s.images[id]; e != nil {
			s.holders[h] = e.rec.ID
		} else if e := s.find(id); e != nil {
			s.holders[h] = e.rec.ID
		}
	}
	s.retained = true
	var ids []string
	for id := range s.images {
		ids = append(ids, id)
	}
	s.mu.Unlock()
	for _, id := range ids {
		s.reap(id)
	}
}

// reap deletes a removed image that nobody holds any more. The caller holds the turn.
func (s *Service) reap(id string) {
	s.mu.Lock()
	e := s.images[id]
	if e == nil || !e.rec.Removed || !s.retained || s.held(id) {
		s.mu.Unlock()
		return
	}
	delete(s.images, id)
	refs := e.refs
	s.mu.Unlock()
	if err := s.erase(id); err != nil {
		s.log.Warn("image record not removed", "image", id, "err", err)
	}
	s.store.Unref(refs...)
}

// held tells whether a container uses the image. The caller holds mu.
func (s *Service) held(id string) bool {
	for _, h := range s.holders {
		if h == id {
			return true
		}
	}
	return false
}
