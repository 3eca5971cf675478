package image

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-project/berth/cri/internal/layers"
	"github.com/berth-project/berth/proto/errs"
)

// Export writes the images that refs stand for as one OCI layout in a tar. Compressed copies are not kept, so
// layers are archived again, uncompressed, from their directories: the files are the same, the tar around them
// rarely is to the byte. Then the config is written with the diffIDs that are true, and the exported image has
// another id than the stored one.
func (s *Service) Export(ctx context.Context, w io.Writer, refs []string) error {
	x := &exporter{ctx: ctx, s: s, tw: tar.NewWriter(w), done: map[digest.Digest]bool{}}
	layout := []byte(`{"imageLayoutVersion":"1.0.0"}`)
	if err := x.member(ocispec.ImageLayoutFile, layout); err != nil {
		return err
	}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for _, ref := range refs {
		d, err := x.image(ref)
		if err != nil {
			return fmt.Errorf("export %s: %w", ref, err)
		}
		index.Manifests = append(index.Manifests, d)
	}
	b, err := json.Marshal(index)
	if err != nil {
		return errs.Internal.Wrap(err)
	}
	if err := x.member("index.json", b); err != nil {
		return err
	}
	return x.tw.Close()
}

type exporter struct {
	ctx  context.Context //nolint:containedctx // one export's
	s    *Service
	tw   *tar.Writer
	done map[digest.Digest]bool
}

func (x *exporter) member(name string, b []byte) error {
	err := x.tw.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(b)), ModTime: time.Unix(0, 0)})
	if err == nil {
		_, err = x.tw.Write(b)
	}
	return err
}

func (x *exporter) blob(b []byte) (digest.Digest, error) {
	d := digest.FromBytes(b)
	if x.done[d] {
		return d, nil
	}
	x.done[d] = true
	return d, x.member(blobName(d), b)
}

// image writes one image's blobs and returns the descriptor of its manifest.
func (x *exporter) image(ref string) (ocispec.Descriptor, error) {
	var none ocispec.Descriptor
	img, err := x.s.Get(ref)
	if err != nil {
		return none, err
	}
	holder := fmt.Sprintf("export %p", x) // keeps the layers while they are read
	if _, err := x.s.Use(holder, img.ID); err != nil {
		return none, err
	}
	defer x.s.Release(holder)
	raw, err := os.ReadFile(x.s.configPath(img.ID))
	if err != nil {
		return none, errs.Internal.Wrap(err)
	}
	man := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Annotations: img.Annotations}
	diffs := []digest.Digest{}
	for _, diff := range img.Config.RootFS.DiffIDs {
		d, err := x.layer(layers.ID(diff))
		if err != nil {
			return none, err
		}
		man.Layers, diffs = append(man.Layers, d), append(diffs, d.Digest)
	}
	if !slices.Equal(diffs, img.Config.RootFS.DiffIDs) {
		if raw, err = withDiffIDs(raw, diffs); err != nil {
			return none, err
		}
	}
	man.Config = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Size: int64(len(raw))}
	if man.Config.Digest, err = x.blob(raw); err != nil {
		return none, err
	}
	b, err := json.Marshal(man)
	if err != nil {
		return none, errs.Internal.Wrap(err)
	}
	d := ocispec.Descriptor{MediaType: man.MediaType, Size: int64(len(b)), Annotations: map[string]string{}}
	if d.Digest, err = x.blob(b); err != nil {
		return none, err
	}
	if len(img.Tags) > 0 {
		d.Annotations[nameAnnotation] = img.Tags[0]
		d.Annotations[ocispec.AnnotationRefName] = img.Tags[0][strings.LastIndexByte(img.Tags[0], ':')+1:]
	}
	return d, nil
}

// layer writes a layer's archive. It is made twice: its name and length stand before its content.
func (x *exporter) layer(id string) (ocispec.Descriptor, error) {
	h := sha256.New()
	size, err := x.s.store.Archive(x.ctx, id, h)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.NewDigest(digest.SHA256, h), Size: size}
	if x.done[d.Digest] {
		return d, nil
	}
	x.done[d.Digest] = true
	if err := x.tw.WriteHeader(&tar.Header{Name: blobName(d.Digest), Typeflag: tar.TypeReg, Mode: 0o644, Size: size, ModTime: time.Unix(0, 0)}); err != nil {
		return d, err
	}
	_, err = x.s.store.Archive(x.ctx, id, x.tw)
	return d, err
}

// withDiffIDs replaces the diffIDs of a config and leaves every other field as it is.
func withDiffIDs(raw []byte, diffs []digest.Digest) ([]byte, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil {
		return nil, errs.Internal.Wrap(err)
	}
	rootfs, err := json.Marshal(ocispec.RootFS{Type: "layers", DiffIDs: diffs})
	if err != nil {
		return nil, errs.Internal.Wrap(err)
	}
	fields["rootfs"] = rootfs
	out, err := json.Marshal(fields)
	return out, errs.Internal.Wrap(err)
}
