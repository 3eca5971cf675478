package registry

import (
	"context"
	"fmt"
	"io"
	"net/http"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-project/berth/proto/errs"
)

// Resolved is what a reference stands for on this platform.
type Resolved struct {
	// Top is the digest of what the name points to, an index where there is one: the digest in RepoDigests.
	Top digest.Digest
	// Digest and Raw are the image manifest's.
	Digest   digest.Digest
	Raw      []byte
	Manifest *ocispec.Manifest
}

// Resolve fetches the manifest that the reference names and, where that is an index, the one for this platform.
// Everything is verified by digest, but for what a tag points to: there the registry is believed.
func (r *Repository) Resolve(ctx context.Context) (*Resolved, error) {
	body, contentType, dgst, err := r.manifest(ctx, r.ref.target(), r.ref.Digest)
	if err != nil {
		return nil, err
	}
	out := &Resolved{Top: dgst}
	for range maxIndexDepth {
		doc, err := ParseDocument(contentType, body)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", r.ref, err)
		}
		if doc.Manifest != nil {
			out.Digest, out.Raw, out.Manifest = dgst, body, doc.Manifest
			return out, nil
		}
		d, err := Select(doc.Index)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", r.ref, err)
		}
		if body, _, dgst, err = r.manifest(ctx, d.Digest.String(), d.Digest); err != nil {
			return nil, err
		}
		contentType = d.MediaType
	}
	return nil, errs.FailedPrecondition.Errorf("%s: more than %d nested indexes", r.ref, maxIndexDepth)
}

// Head asks for the digest that a tag points to, without counting as a pull at registries that do. It is empty,
// without an error, where the registry does not tell.
func (r *Repository) Head(ctx context.Context) (digest.Digest, error) {
	var d digest.Digest
	err := r.each(ctx, func(h *host) bool { return h.resolve }, func(c *conn) error {
		resp, err := c.get(ctx, http.MethodHead, c.url(r.ref, "manifests/"+r.ref.target()), http.Header{"Accept": accepted})
		if err != nil {
			return err
		}
		defer drain(resp)
		if resp.StatusCode != http.StatusOK {
			return statusError(resp, c.host.String(), r.ref.String())
		}
		if got := digest.Digest(resp.Header.Get("Docker-Content-Digest")); CheckDigest(got) == nil {
			d = got
		}
		return nil
	})
	return d, err
}

// manifest gets one manifest from the first host that has it. want is empty for a tag.
func (r *Repository) manifest(ctx context.Context, target string, want digest.Digest) (body []byte, contentType string, got digest.Digest, err error) {
	use := func(h *host) bool { return h.resolve }
	if want != "" {
		use = func(h *host) bool { return h.pull }
	}
	err = r.each(ctx, use, func(c *conn) error {
		resp, err := c.get(ctx, http.MethodGet, c.url(r.ref, "manifests/"+target), http.Header{"Accept": accepted})
		if err != nil {
			return err
		}
		defer drain(resp)
		if resp.StatusCode != http.StatusOK {
			return statusError(resp, c.host.String(), r.ref.String())
		}
		if body, err = readAll(ctx, r.cfg, resp.Body, MaxManifest); err != nil {
			return fmt.Errorf("%s: manifest %s: %w", c.host, target, err)
		}
		contentType = resp.Header.Get("Content-Type")
		got = digest.FromBytes(body)
		if want != "" && got != want {
			return errs.FailedPrecondition.Errorf("%s: manifest %s has digest %s", c.host, target, got)
		}
		if said := digest.Digest(resp.Header.Get("Docker-Content-Digest")); want == "" && CheckDigest(said) == nil && said != got {
			return errs.FailedPrecondition.Errorf("%s: manifest %s has digest %s, but was announced as %s", c.host, target, got, said)
		}
		return nil
	})
	return body, contentType, got, err
}

// readAll reads a small body whole, under the same watch as a blob.
func readAll(ctx context.Context, cfg *Config, body io.Reader, limit int64) ([]byte, error) {
	w := newWatch(ctx, cfg)
	defer w.stop()
	if closer, ok := body.(io.Closer); ok {
		w.abort = func() { _ = closer.Close() } //nolint:errcheck // unblocks the read
	}
	b, err := io.ReadAll(io.LimitReader(readerFunc(func(p []byte) (int, error) { return w.read(body, p) }), limit+1))
	if err != nil {
		return nil, errs.Unavailable.Errorf(Unreachable+"%w", err)
	}
	if int64(len(b)) > limit {
		return nil, errs.FailedPrecondition.Errorf("more than %d bytes", limit)
	}
	return b, nil
}

type readerFunc func([]byte) (int, error)

// Read implements io.Reader.
func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// Small fetches a blob that fits in memory, such as a config, and verifies its size and digest.
func (r *Repository) Small(ctx context.Context, d ocispec.Descriptor, limit int64) ([]byte, error) {
	if d.Size > limit {
		return nil, errs.FailedPrecondition.Errorf("blob %s: %d bytes are over the limit of %d", d.Digest, d.Size, limit)
	}
	var last error
	for skip := range r.Sources() {
		body, err := r.Blob(ctx, d, skip)
		if err != nil {
			return nil, err
		}
		b, err := io.ReadAll(body)
		_ = body.Close() //nolint:errcheck // read side
		if err == nil && digest.FromBytes(b) == d.Digest {
			return b, nil
		}
		if err == nil {
			err = errs.FailedPrecondition.Errorf("blob %s: content has digest %s", d.Digest, digest.FromBytes(b))
		}
		if last = err; ctx.Err() != nil {
			break
		}
	}
	return nil, last
}
