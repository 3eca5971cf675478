package registry

import (
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"github.com/berth-project/berth/proto/errs"
)

// Reference is a normalised image reference: "busybox" is docker.io/library/busybox:latest.
type Reference struct {
	// Domain is the registry as written in names, with a port where one was given; "docker.io" for Docker Hub.
	Domain string
	// Path is the repository inside the registry.
	Path string
	// Tag is empty when the reference is by digest only.
	Tag string
	// Digest is empty when the reference is by tag only. Where both are given the digest decides what is pulled.
	Digest digest.Digest
}

// Parse normalises s: Docker Hub's defaults, ":latest" for a name with neither tag nor digest. Errors are
// errs.InvalidArgument and name s.
func Parse(s string) (Reference, error) {
	if len(s) > 1024 {
		return Reference{}, errs.InvalidArgument.Errorf("image reference of %d bytes is too long", len(s))
	}
	named, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		return Reference{}, errs.InvalidArgument.Errorf("image reference %q: %w", s, err)
	}
	r := Reference{Domain: reference.Domain(named), Path: reference.Path(named)}
	if t, ok := named.(reference.Tagged); ok {
		r.Tag = t.Tag()
	}
	if d, ok := named.(reference.Digested); ok {
		r.Digest = d.Digest()
		if err := CheckDigest(r.Digest); err != nil {
			return Reference{}, err
		}
	}
	if r.Tag == "" && r.Digest == "" {
		r.Tag = "latest"
	}
	return r, nil
}

// Name is the reference without tag and digest.
func (r Reference) Name() string { return r.Domain + "/" + r.Path }

// String is the full name: by digest where there is one, else by tag.
func (r Reference) String() string {
	if r.Digest != "" {
		return r.Name() + "@" + r.Digest.String()
	}
	return r.Name() + ":" + r.Tag
}

// target is what follows /manifests/ in a request.
func (r Reference) target() string {
	if r.Digest != "" {
		return r.Digest.String()
	}
	return r.Tag
}

// CheckDigest accepts "sha256:" and 64 lower-case hex digits, nothing else: a digest becomes a file name, and no
// registry serves another algorithm for images. Other well-formed algorithms are errs.Unimplemented, the rest
// errs.InvalidArgument.
func CheckDigest(d digest.Digest) error {
	algo, hex, ok := strings.Cut(string(d), ":")
	if ok && algo != "sha256" && digest.DigestRegexpAnchored.MatchString(string(d)) {
		return errs.Unimplemented.Errorf("digest %.100q: algorithm %s is not supported, only sha256", d, algo)
	}
	if !ok || algo != "sha256" || len(hex) != 64 || strings.Trim(hex, "0123456789abcdef") != "" {
		return errs.InvalidArgument.Errorf("digest %.100q is not sha256 and 64 hex digits", d)
	}
	return nil
}
