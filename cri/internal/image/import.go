package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-project/berth/cri/internal/layers"
	"github.com/berth-project/berth/cri/internal/registry"
	"github.com/berth-project/berth/proto/errs"
)

// nameAnnotation is where containerd, Docker and buildkit write an image's full name in an index.
const nameAnnotation = "io.containerd.image.name"

// Import stores every image of an archive and returns them: an OCI layout in a tar, or what "docker save" writes,
// plain or compressed with gzip or zstd. Of an index only the image for this platform is taken. Images that were
// stored before an error stay. Errors are as for Pull.
func (s *Service) Import(ctx context.Context, r io.Reader) ([]*Image, error) {
	sp, err := newSpool(s.store, r)
	if err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	defer sp.close(s.log)
	if err := sp.fill(ctx, s.cfg.MaxLayerBytes); err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	var sources []*source
	if sp.has("index.json") {
		sources, err = ociSources(sp)
	} else {
		sources, err = dockerSources(sp)
	}
	if err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	var out []*Image
	for _, src := range sources {
		img, err := s.install(ctx, src)
		if err != nil {
			return out, fmt.Errorf("import %s: %w", src.id, err)
		}
		out = append(out, img)
	}
	return out, nil
}

// ociSources reads an OCI layout (image-spec, image-layout.md).
func ociSources(sp *spool) ([]*source, error) {
	b, err := sp.read("index.json", registry.MaxManifest)
	if err != nil {
		return nil, err
	}
	doc, err := registry.ParseDocument(ocispec.MediaTypeImageIndex, b)
	if err != nil {
		return nil, fmt.Errorf("index.json: %w", err)
	}
	var out []*source
	byID := map[string]*source{}
	for _, d := range doc.Index.Manifests {
		src, err := ociSource(sp, d)
		if errs.Of(err) == errs.NotFound && len(doc.Index.Manifests) > 1 {
			continue // of another platform, or an attestation
		}
		if err != nil {
			return nil, err
		}
		if have := byID[src.id]; have != nil {
			have.tags, have.digests = union(have.tags, src.tags), union(have.digests, src.digests)
			continue
		}
		byID[src.id] = src
		out = append(out, src)
	}
	if len(out) == 0 {
		return nil, errs.FailedPrecondition.Errorf("the archive has no image for this platform")
	}
	return out, nil
}

func ociSource(sp *spool, top ocispec.Descriptor) (*source, error) {
	d := top
	for range 3 {
		b, err := sp.blob(d.Digest, registry.MaxManifest)
		if err != nil {
			return nil, err
		}
		doc, err := registry.ParseDocument(d.MediaType, b)
		if err != nil {
			return nil, err
		}
		if doc.Manifest != nil {
			src, err := manifestSource(sp, doc.Manifest)
			if err != nil {
				return nil, err
			}
			src.name(top)
			return src, nil
		}
		if d, err = registry.Select(doc.Index); err != nil {
			return nil, err
		}
	}
	return nil, errs.FailedPrecondition.Errorf("indexes are nested too deep")
}

// name takes an image's name from the index entry that led to it. A bare tag, which some tools write, names
// nothing.
func (src *source) name(top ocispec.Descriptor) {
	full := top.Annotations[nameAnnotation]
	if ref := top.Annotations[ocispec.AnnotationRefName]; full == "" && strings.ContainsAny(ref, "/:") {
		full = ref
	}
	if r, err := registry.Parse(full); full != "" && err == nil {
		if r.Tag != "" {
			src.tags = []string{r.Name() + ":" + r.Tag}
		}
		src.digests = []string{r.Name() + "@" + top.Digest.String()}
	}
}

func manifestSource(sp *spool, m *ocispec.Manifest) (*source, error) {
	raw, err := sp.blob(m.Config.Digest, registry.MaxConfig)
	if err != nil {
		return nil, err
	}
	src := &source{id: m.Config.Digest.String(), rawConfig: raw, annotations: m.Annotations, attempts: 1}
	if src.config, err = parseConfig(raw); err != nil {
		return nil, err
	}
	if len(src.config.RootFS.DiffIDs) != len(m.Layers) {
		return nil, errs.FailedPrecondition.Errorf("image has %d layers but its config %d", len(m.Layers), len(src.config.RootFS.DiffIDs))
	}
	names := make([]string, len(m.Layers))
	for i, d := range m.Layers {
		names[i] = blobName(d.Digest)
		src.blobs = append(src.blobs, layers.Blob{Digest: d.Digest, Size: d.Size, DiffID: src.config.RootFS.DiffIDs[i]})
	}
	src.open = sp.opener(names)
	return src, nil
}

// dockerSources reads manifest.json (moby image/tarexport).
func dockerSources(sp *spool) ([]*source, error) {
	b, err := sp.read("manifest.json", registry.MaxManifest)
	if err != nil {
		return nil, errs.FailedPrecondition.Errorf("neither an OCI layout nor a docker archive: %w", err)
	}
	var list []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, errs.FailedPrecondition.Errorf("manifest.json: %w", err)
	}
	var out []*source
	for _, m := range list {
		raw, err := sp.read(m.Config, registry.MaxConfig)
		if err != nil {
			return nil, err
		}
		src := &source{id: digest.FromBytes(raw).String(), rawConfig: raw, attempts: 1, open: sp.opener(m.Layers)}
		if src.config, err = parseConfig(raw); err != nil {
			return nil, err
		}
		if len(src.config.RootFS.DiffIDs) != len(m.Layers) {
			return nil, errs.FailedPrecondition.Errorf("image has %d layers but its config %d", len(m.Layers), len(src.config.RootFS.DiffIDs))
		}
		for _, d := range src.config.RootFS.DiffIDs {
			src.blobs = append(src.blobs, layers.Blob{DiffID: d})
		}
		for _, t := range m.RepoTags {
			r, err := registry.Parse(t)
			if err != nil {
				return nil, err
			}
			src.tags = append(src.tags, r.String())
		}
		out = append(out, src)
	}
	if len(out) == 0 {
		return nil, errs.FailedPrecondition.Errorf("manifest.json names no image")
	}
	return out, nil
}

// opener reads members of the spool as layers.
func (sp *spool) opener(names []string) func(context.Context, int, int) (io.ReadCloser, error) {
	return func(_ context.Context, i, _ int) (io.ReadCloser, error) {
		f, err := sp.open(names[i])
		if errors.Is(err, os.ErrNotExist) {
			return nil, errs.FailedPrecondition.Errorf("the archive lacks layer %.200q", names[i])
		}
		return f, err
	}
}
