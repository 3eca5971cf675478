package image

import (
	"cmp"
	"slices"
	"strings"

	"github.com/berth-project/berth/cri/internal/layers"
	"github.com/berth-project/berth/cri/internal/registry"
	"github.com/berth-project/berth/proto/errs"
)

// minShortID is the least number of hex digits that stand for an image id.
const minShortID = 6

// describe makes the public value of an entry, nil for a hidden one. The caller holds mu or is alone.
func (s *Service) describe(e *entry) *Image {
	if e.hidden() {
		return nil
	}
	img := &Image{
		ID: e.rec.ID, Config: e.config, Annotations: e.rec.Annotations,
		Tags: slices.Sorted(slices.Values(e.rec.Tags)), Digests: slices.Sorted(slices.Values(e.rec.Digests)),
		Size: uint64(max(e.configSize, 1)), //nolint:gosec // positive
	}
	for _, id := range e.refs {
		if info, ok := s.store.Info(id); ok {
			img.Size += uint64(info.Bytes) //nolint:gosec // checked when loaded
		}
	}
	for _, l := range e.rec.Layers {
		img.Chain = append(img.Chain, l.Chain)
	}
	for _, p := range s.pinned {
		img.Pinned = img.Pinned || pins(p, img)
	}
	return img
}

// publish makes the list that List returns. The caller holds mu.
func (s *Service) publish() {
	out := make([]*Image, 0, len(s.images))
	for _, e := range s.images {
		if e.image != nil {
			out = append(out, e.image)
		}
	}
	slices.SortFunc(out, func(a, b *Image) int {
		return cmp.Or(cmp.Compare(first(a.Tags), first(b.Tags)), cmp.Compare(a.ID, b.ID))
	})
	s.list.Store(&out)
}

func first(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[0]
}

// List returns all images, sorted by first tag and id. The slice is shared: it must not be changed.
func (s *Service) List() []*Image { return *s.list.Load() }

// Get finds an image by tag, by digest, by id with or without "sha256:", or by a unique beginning of the id of at
// least six digits. errs.NotFound otherwise.
func (s *Service) Get(ref string) (*Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.find(ref); e != nil {
		return e.image, nil
	}
	return nil, errs.NotFound.Errorf("image %q: %w", ref, errs.NotFound)
}

// find is Get without the error. The caller holds mu.
func (s *Service) find(ref string) *entry {
	hex := strings.TrimPrefix(ref, "sha256:")
	isHex := len(hex) >= minShortID && len(hex) <= 64 && strings.Trim(hex, "0123456789abcdef") == ""
	if isHex && len(hex) == 64 {
		if e := s.images["sha256:"+hex]; e != nil && !e.hidden() {
			return e
		}
		return nil
	}
	if r, err := registry.Parse(ref); err == nil {
		if e := s.images[s.names[r.String()]]; e != nil && !e.hidden() {
			return e
		}
	}
	if !isHex {
		return nil
	}
	var hit *entry
	for id, e := range s.images {
		if !e.hidden() && strings.HasPrefix(id, "sha256:"+hex) {
			if hit != nil {
				return nil
			}
			hit = e
		}
	}
	return hit
}

// pins tells whether a pin pattern covers an image: a name in any form that Get takes, or a glob ('*' any run of
// characters, '?' one) over its full names or its id.
func pins(pattern string, img *Image) bool {
	if !strings.ContainsAny(pattern, "*?") {
		if pattern == img.ID || "sha256:"+pattern == img.ID {
			return true
		}
		r, err := registry.Parse(pattern)
		return err == nil && (slices.Contains(img.Tags, r.String()) || slices.Contains(img.Digests, r.String()))
	}
	for _, n := range slices.Concat(img.Tags, img.Digests, []string{img.ID}) {
		if glob(pattern, n) {
			return true
		}
	}
	return false
}

// glob matches in linear time for each '*', without recursion.
func glob(pattern, s string) bool {
	p, i, star, mark := 0, 0, -1, 0
	for i < len(s) {
		switch {
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == s[i]) && pattern[p] != '*':
			p, i = p+1, i+1
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, i
			p++
		case star >= 0:
			mark++
			p, i = star+1, mark
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}

// rootfs stacks the layers of an image, topmost first: each below its fix, empty ones left out, and of a layer
// that occurs twice only the upper (overlayfs refuses the same directory twice, and the upper hides the lower).
// The caller holds mu.
func (s *Service) rootfs(rec *record) Rootfs {
	var out Rootfs
	seen := map[string]bool{}
	for _, l := range slices.Backward(rec.Layers) {
		ids := []string{layers.ID(l.DiffID)}
		if l.Fix {
			ids = []string{layers.FixID(l.Chain), ids[0]}
		}
		opaque := false
		for _, id := range ids {
			info, _ := s.store.Info(id)
			opaque = opaque || info.Opaque
			if info.Inodes > 0 && !seen[id] {
				seen[id] = true
				out.Lower = append(out.Lower, s.store.Dir(id))
			}
		}
		if opaque {
			break
		}
	}
	if len(out.Lower) == 0 {
		out.Lower = []string{s.empty}
	}
	return out
}
