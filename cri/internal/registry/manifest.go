package registry

import (
	"encoding/json"
	"fmt"
	"mime"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-project/berth/proto/errs"
)

// Docker's names for the media types that OCI has its own for.
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
	dockerSchema1  = "application/vnd.docker.distribution.manifest.v1+json"
	dockerSchema1s = "application/vnd.docker.distribution.manifest.v1+prettyjws"
)

// accepted is the Accept header of manifest requests, in the order of preference.
var accepted = []string{ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex, dockerManifest, dockerList, "*/*;q=0.1"}

var layerTypes = []string{
	ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd,
	"application/vnd.docker.image.rootfs.diff.tar", "application/vnd.docker.image.rootfs.diff.tar.gzip",
	"application/vnd.docker.image.rootfs.diff.tar.zstd",
}

// Document is a manifest or an index, whichever of the two is not nil.
type Document struct {
	MediaType string
	Manifest  *ocispec.Manifest
	Index     *ocispec.Index
}

// ParseDocument reads a manifest or index whose type was given as contentType (a Content-Type header or a
// descriptor's mediaType; may be empty). A document that is both, or whose own mediaType is another, is refused:
// two readers could see two images (GHSA-5j5w-g665-5m35). Every digest in the result is well-formed, sizes are
// positive, and no layer is foreign. Errors are errs.FailedPrecondition or errs.Unimplemented.
func ParseDocument(contentType string, body []byte) (*Document, error) {
	if len(body) > MaxManifest {
		return nil, errs.FailedPrecondition.Errorf("manifest of %d bytes is over the limit of %d", len(body), MaxManifest)
	}
	var head struct {
		SchemaVersion int             `json:"schemaVersion"`
		MediaType     string          `json:"mediaType"`
		Config        json.RawMessage `json:"config"`
		Layers        json.RawMessage `json:"layers"`
		Manifests     json.RawMessage `json:"manifests"`
		FSLayers      json.RawMessage `json:"fsLayers"`
	}
	if err := json.Unmarshal(body, &head); err != nil {
		return nil, errs.FailedPrecondition.Errorf("manifest: %w", err)
	}
	given, _, _ := mime.ParseMediaType(contentType) //nolint:errcheck // what does not parse is no known type
	if head.SchemaVersion == 1 || head.FSLayers != nil || given == dockerSchema1 || given == dockerSchema1s {
		return nil, errs.Unimplemented.Errorf("manifest is Docker schema 1, which has no content digests; push the image again with a current tool")
	}
	if head.Manifests != nil && (head.Layers != nil || head.Config != nil) {
		return nil, errs.FailedPrecondition.Errorf("manifest is ambiguous: it has both manifests and layers")
	}
	if head.MediaType != "" && slices.Contains(accepted, given) && head.MediaType != given {
		return nil, errs.FailedPrecondition.Errorf("manifest says it is %.100q but was served as %q", head.MediaType, given)
	}
	d := &Document{MediaType: head.MediaType}
	if d.MediaType == "" {
		d.MediaType = given
	}
	isList := d.MediaType == ocispec.MediaTypeImageIndex || d.MediaType == dockerList
	isImage := d.MediaType == ocispec.MediaTypeImageManifest || d.MediaType == dockerManifest
	switch {
	case head.Manifests != nil && !isImage:
		d.Index = &ocispec.Index{}
		return d, d.index(body)
	case head.Config != nil && !isList:
		d.Manifest = &ocispec.Manifest{}
		return d, d.manifest(body)
	}
	return nil, errs.FailedPrecondition.Errorf("manifest of type %.100q is neither an image nor an index", d.MediaType)
}

func (d *Document) index(body []byte) error {
	if err := json.Unmarshal(body, d.Index); err != nil {
		return errs.FailedPrecondition.Errorf("index: %w", err)
	}
	if n := len(d.Index.Manifests); n > 1000 {
		return errs.FailedPrecondition.Errorf("index has %d manifests", n)
	}
	if d.MediaType == "" {
		d.MediaType = ocispec.MediaTypeImageIndex
	}
	for i := range d.Index.Manifests {
		if err := checkDescriptor(&d.Index.Manifests[i], MaxManifest); err != nil {
			return fmt.Errorf("index entry %d: %w", i, err)
		}
	}
	return nil
}

func (d *Document) manifest(body []byte) error {
	if err := json.Unmarshal(body, d.Manifest); err != nil {
		return errs.FailedPrecondition.Errorf("manifest: %w", err)
	}
	m := d.Manifest
	if d.MediaType == "" {
		d.MediaType = ocispec.MediaTypeImageManifest
	}
	if t := m.Config.MediaType; t != ocispec.MediaTypeImageConfig && t != dockerConfig {
		return errs.FailedPrecondition.Errorf("not a container image: its config is of type %.100q", t)
	}
	if err := checkDescriptor(&m.Config, MaxConfig); err != nil {
		return fmt.Errorf("config: %w", err)
	}
	if len(m.Layers) > MaxLayers {
		return errs.FailedPrecondition.Errorf("image has %d layers, more than the %d that are supported", len(m.Layers), MaxLayers)
	}
	for i := range m.Layers {
		if err := checkDescriptor(&m.Layers[i], 1<<40); err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
		if t := m.Layers[i].MediaType; !slices.Contains(layerTypes, t) {
			return errs.FailedPrecondition.Errorf("layer %d: type %.100q is not supported (foreign and encrypted layers are not)", i, t)
		}
	}
	return nil
}

func checkDescriptor(d *ocispec.Descriptor, limit int64) error {
	if err := checkContentDigest(d.Digest); err != nil {
		return err
	}
	if d.Size < 0 || d.Size > limit {
		return errs.FailedPrecondition.Errorf("%s: size %d is outside 0..%d", d.Digest, d.Size, limit)
	}
	if len(d.URLs) > 0 {
		return errs.FailedPrecondition.Errorf("%s: content at foreign URLs is refused", d.Digest)
	}
	return nil
}

// checkContentDigest is CheckDigest for what a registry sent: then it is no caller's argument that is wrong.
func checkContentDigest(d digest.Digest) error {
	err := CheckDigest(d)
	if errs.Of(err) == errs.InvalidArgument {
		return errs.FailedPrecondition.Wrap(err)
	}
	return err
}
