package image

import (
	"context"
	"slices"

	"github.com/berth-project/berth/proto/errs"
)

// Remove removes the image that ref stands for, with all its names: it is gone from List, Get and (unless it is in
// use or shares them) its layers from Usage when Remove returns; the disk follows. An image in use is hidden and
// keeps its layers until released. Removing what is not there is no error.
func (s *Service) Remove(ctx context.Context, ref string) error {
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	s.mu.Lock()
	e := s.find(ref)
	if e == nil {
		e = s.findIncomplete(ref)
	}
	if e == nil {
		s.mu.Unlock()
		return nil
	}
	id := e.rec.ID
	keep := s.held(id) || !s.retained
	rec := e.rec
	rec.Tags, rec.Digests, rec.Removed = nil, nil, true
	s.mu.Unlock()

	if keep {
		if err := s.save(&rec); err != nil {
			return errs.Internal.Wrap(err)
		}
	} else if err := s.erase(id); err != nil {
		return errs.Internal.Errorf("remove image %s: %w", id, err)
	}
	s.mu.Lock()
	for _, n := range slices.Concat(e.rec.Tags, e.rec.Digests) {
		if s.names[n] == id {
			delete(s.names, n)
		}
	}
	e.rec, e.image = rec, nil
	gone := !keep && !s.held(id)
	if gone {
		delete(s.images, id)
	}
	s.publish()
	refs := e.refs
	s.mu.Unlock()
	if gone {
		s.store.Unref(refs...)
	} else if !keep { // somebody began to use it in this moment
		return errs.Internal.Wrap(s.save(&rec))
	}
	return nil
}

// findIncomplete lets an image that must be pulled again be removed by its id. The caller holds mu.
func (s *Service) findIncomplete(ref string) *entry {
	e := s.images[ref]
	if e == nil {
		e = s.images["sha256:"+ref]
	}
	if e == nil || e.rec.Removed {
		return nil
	}
	return e
}
