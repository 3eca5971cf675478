package image

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-project/berth/cri/internal/layers"
	"github.com/berth-project/berth/cri/internal/registry"
	"github.com/berth-project/berth/proto/errs"
)

// source is an image about to be stored, wherever it comes from.
type source struct {
	id          string // config digest
	config      *ocispec.Image
	rawConfig   []byte
	tags        []string
	digests     []string
	annotations map[string]string
	// open starts reading the compressed form of layer i; attempt counts from 0.
	open func(ctx context.Context, i, attempt int) (io.ReadCloser, error)
	// blobs describe the compressed forms; attempts is how often open may be asked.
	blobs    []layers.Blob
	attempts int
}

// Pull makes the image that ref stands for at its registry present and returns it. Pulls of the same reference
// with the same credentials share one run; a caller whose ctx ends leaves at once, and the work ends when nobody
// waits. When it returns without error the image survives a power cut.
//
// Errors: errs.InvalidArgument for the reference, NotFound, Unauthenticated, PermissionDenied, and Unavailable
// with a text that starts with registry.Unreachable as the registry's answers, FailedPrecondition for content
// that is wrong, ResourceExhausted for a full disk.
func (s *Service) Pull(ctx context.Context, ref string, auth *Auth) (*Image, error) {
	r, err := registry.Parse(ref)
	if err != nil {
		return nil, err
	}
	cred, err := auth.credential()
	if err != nil {
		return nil, err
	}
	key := fmt.Sprintf("%s %x", ref, sha256.Sum256(fmt.Appendf(nil, "%q", auth)))
	img, err := s.pulls.do(ctx, key, func(ctx context.Context) (*Image, error) { return s.pull(ctx, r, cred) })
	if err != nil {
		return nil, pullError(r, err)
	}
	return img, nil
}

// pullError names the image, behind the word that the kubelet looks for at the start.
func pullError(r registry.Reference, err error) error {
	lead := ""
	if errs.Of(err) == errs.Unavailable && strings.Contains(err.Error(), registry.Unreachable) {
		lead = registry.Unreachable
	}
	text := strings.NewReplacer(registry.Unreachable, "", "\n", "; ").Replace(err.Error())
	return errs.Of(err).Errorf("%spull %s: %w", lead, r, &silent{text, err})
}

// silent is an error with a text of its own.
type silent struct {
	text string
	err  error
}

// Error implements error.
func (e *silent) Error() string { return e.text }

// Unwrap keeps the cause within reach of errors.Is.
func (e *silent) Unwrap() error { return e.err }

// credential decodes what the kubelet sent; nil for nothing.
func (a *Auth) credential() (*registry.Credential, error) {
	if a == nil || *a == (Auth{ServerAddress: a.ServerAddress}) {
		return nil, nil
	}
	c := &registry.Credential{
		Username: a.Username, Password: a.Password, ServerAddress: a.ServerAddress,
		IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken,
	}
	if a.Username == "" && a.Password == "" && a.Auth != "" {
		b, err := base64.StdEncoding.DecodeString(a.Auth)
		if err != nil {
			return nil, errs.InvalidArgument.Errorf("auth is not base64")
		}
		var ok bool
		if c.Username, c.Password, ok = strings.Cut(strings.TrimRight(string(b), "\x00"), ":"); !ok {
			return nil, errs.InvalidArgument.Errorf("auth is not user:password")
		}
	}
	return c, nil
}

// pull is the story of one pull.
func (s *Service) pull(ctx context.Context, r registry.Reference, cred *registry.Credential) (*Image, error) {
	repo, err := s.registry.Open(r, cred)
	if err != nil {
		return nil, err
	}
	defer repo.Close()
	// 1. The registry is always asked, so that a caller without the right credentials gets nothing; when it
	// still says what is known here, that is all.
	if img := s.current(ctx, repo, r); img != nil {
		return img, nil
	}
	// 2. Manifest and config.
	res, err := repo.Resolve(ctx)
	if err != nil {
		return nil, err
	}
	src, err := s.describeSource(ctx, repo, r, res)
	if err != nil {
		return nil, err
	}
	// 3. Layers, durable, and the record.
	return s.install(ctx, src)
}

// current returns the image that r names if it is here, whole, and the registry agrees.
func (s *Service) current(ctx context.Context, repo *registry.Repository, r registry.Reference) *Image {
	known, err := s.Get(r.String())
	if err != nil {
		return nil
	}
	top, err := repo.Head(ctx)
	if err != nil || top == "" || !slices.Contains(known.Digests, r.Name()+"@"+top.String()) {
		return nil
	}
	return known
}

func (s *Service) describeSource(ctx context.Context, repo *registry.Repository, r registry.Reference, res *registry.Resolved) (*source, error) {
	src := &source{
		id: res.Manifest.Config.Digest.String(), annotations: res.Manifest.Annotations,
		digests: []string{r.Name() + "@" + res.Top.String()}, attempts: repo.Sources(),
	}
	if r.Digest == "" {
		src.tags = []string{r.String()}
	}
	var err error
	if src.rawConfig, err = os.ReadFile(s.configPath(src.id)); err != nil || digest.FromBytes(src.rawConfig).String() != src.id {
		if src.rawConfig, err = repo.Small(ctx, res.Manifest.Config, registry.MaxConfig); err != nil {
			return nil, err
		}
	}
	if src.config, err = parseConfig(src.rawConfig); err != nil {
		return nil, err
	}
	blobs := res.Manifest.Layers
	if len(src.config.RootFS.DiffIDs) != len(blobs) {
		return nil, errs.FailedPrecondition.Errorf("image has %d layers but its config %d", len(blobs), len(src.config.RootFS.DiffIDs))
	}
	for i, d := range blobs {
		src.blobs = append(src.blobs, layers.Blob{Digest: d.Digest, Size: d.Size, DiffID: src.config.RootFS.DiffIDs[i]})
	}
	src.open = func(ctx context.Context, i, attempt int) (io.ReadCloser, error) {
		return repo.Blob(ctx, blobs[i], attempt)
	}
	return src, nil
}

// parseConfig reads an image config and checks what this program relies on.
func parseConfig(b []byte) (*ocispec.Image, error) {
	c := &ocispec.Image{}
	if err := json.Unmarshal(b, c); err != nil {
		return nil, errs.FailedPrecondition.Errorf("image config: %w", err)
	}
	if err := registry.CheckPlatform(c); err != nil {
		return nil, err
	}
	if len(c.RootFS.DiffIDs) > registry.MaxLayers {
		return nil, errs.FailedPrecondition.Errorf("image has %d layers, more than the %d that are supported", len(c.RootFS.DiffIDs), registry.MaxLayers)
	}
	for _, d := range c.RootFS.DiffIDs {
		if err := registry.CheckDigest(d); err != nil {
			return nil, errs.FailedPrecondition.Errorf("image config: %w", err)
		}
	}
	return c, nil
}

// install makes the layers of src present and durable, then its record. The references taken on the way become
// the record's, or are given back.
func (s *Service) install(ctx context.Context, src *source) (img *Image, err error) {
	refs, err := s.layers(ctx, src)
	rec := record{Version: 1, ID: src.id, Annotations: src.annotations}
	if err == nil {
		refs, err = s.fixes(ctx, src, &rec, refs)
	}
	if err == nil {
		err = s.saveConfig(src.id, src.rawConfig)
	}
	if err == nil {
		err = s.store.Commit(ctx, refs)
	}
	if err == nil {
		img, err = s.record(src, rec, &refs)
	}
	s.store.Unref(refs...)
	return img, err
}

// layers fetches all layers at once, each once, and returns the references it took, also when it fails.
func (s *Service) layers(ctx context.Context, src *source) ([]string, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		refs  []string
		first error
	)
	started := map[string]bool{}
	for i, b := range src.blobs {
		id := layers.ID(b.DiffID)
		if started[id] {
			continue
		}
		started[id] = true
		wg.Go(func() {
			err := s.store.Ensure(ctx, id, func(ctx context.Context, dir *os.File) (*layers.Result, error) {
				return s.unpack(ctx, src, i, dir)
			})
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				refs = append(refs, id)
			} else if first == nil {
				first = err
				cancel()
			}
		})
	}
	wg.Wait()
	return refs, first
}

// unpack downloads and unpacks layer i, from another source where one sends wrong content.
func (s *Service) unpack(ctx context.Context, src *source, i int, dir *os.File) (*layers.Result, error) {
	var errList []error
	for attempt := range max(1, src.attempts) {
		if attempt > 0 {
			if err := layers.Clear(dir); err != nil {
				return nil, err
			}
		}
		res, err := s.unpackOnce(ctx, src, i, attempt, dir)
		if err == nil || !errors.Is(err, layers.ErrContent) {
			return res, err
		}
		errList = append(errList, err)
	}
	return nil, errs.FailedPrecondition.Wrap(errors.Join(errList...))
}

func (s *Service) unpackOnce(ctx context.Context, src *source, i, attempt int, dir *os.File) (*layers.Result, error) {
	ctx, cancel := context.WithCancel(ctx) // ends the body before Unpack waits for its reader
	defer cancel()
	b, err := src.open(ctx, i, attempt)
	if err != nil {
		return nil, err
	}
	defer b.Close() //nolint:errcheck // read side
	return s.unpacker.Unpack(ctx, dir, b, src.blobs[i], layers.Limits{Bytes: s.cfg.MaxLayerBytes})
}

// fixes fills rec.Layers and makes the directories that fit layers to those below them.
func (s *Service) fixes(ctx context.Context, src *source, rec *record, refs []string) ([]string, error) {
	var chain digest.Digest
	var below []string // topmost first
	for _, b := range src.blobs {
		chain = layers.ChainID(chain, b.DiffID)
		id := layers.ID(b.DiffID)
		l := recordLayer{DiffID: b.DiffID, Chain: chain}
		info, _ := s.store.Info(id)
		if info.NeedsFix() {
			fix := layers.FixID(chain)
			if err := s.store.EnsureFix(ctx, fix, id, below); err != nil {
				return refs, err
			}
			refs, below, l.Fix = append(refs, fix), append([]string{fix}, below...), true
		}
		if info.Opaque {
			below = nil
		}
		below = append([]string{id}, slices.DeleteFunc(below, func(o string) bool { return o == id })...)
		if l.Fix {
			below[0], below[1] = below[1], below[0]
		}
		rec.Layers = append(rec.Layers, l)
	}
	return refs, nil
}

// record merges the new image with what is known under its id, writes it durably and publishes it. The entry
// takes over the references in refs; what the caller must give back stays in refs.
func (s *Service) record(src *source, rec record, refs *[]string) (*Image, error) {
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	s.mu.Lock()
	old := s.images[rec.ID]
	rec.Tags, rec.Digests = slices.Clone(src.tags), slices.Clone(src.digests)
	if old != nil {
		rec.Tags, rec.Digests = union(old.rec.Tags, rec.Tags), union(old.rec.Digests, rec.Digests)
	}
	s.seq++
	rec.Seq = s.seq
	losers := s.losers(&rec)
	s.mu.Unlock()

	if err := s.saveConfig(rec.ID, src.rawConfig); err != nil { // a removal may have taken it
		return nil, err
	}
	if err := s.save(&rec); err != nil {
		return nil, err
	}
	for _, l := range losers {
		if err := s.save(&l); err != nil {
			return nil, err
		}
	}
	e := &entry{rec: rec, config: src.config, configSize: len(src.rawConfig), refs: *refs}
	s.mu.Lock()
	defer s.mu.Unlock()
	*refs = nil
	if old := s.images[rec.ID]; old != nil {
		*refs = old.refs
	}
	s.images[rec.ID] = e
	for _, l := range losers {
		if o := s.images[l.ID]; o != nil {
			o.rec = l
			o.image = s.describe(o)
		}
	}
	for _, n := range slices.Concat(rec.Tags, rec.Digests) {
		s.names[n] = rec.ID
	}
	e.image = s.describe(e)
	s.publish()
	return e.image, nil
}

// losers returns the records of other images without the tags that rec takes from them. The caller holds mu.
func (s *Service) losers(rec *record) []record {
	var out []record
	for id, e := range s.images {
		taken := func(n string) bool { return slices.Contains(rec.Tags, n) || slices.Contains(rec.Digests, n) }
		if id == rec.ID || !slices.ContainsFunc(slices.Concat(e.rec.Tags, e.rec.Digests), taken) {
			continue
		}
		l := e.rec
		l.Tags = slices.DeleteFunc(slices.Clone(l.Tags), taken)
		l.Digests = slices.DeleteFunc(slices.Clone(l.Digests), taken)
		out = append(out, l)
	}
	return out
}

// union is a and b without repetition, sorted.
func union(a, b []string) []string {
	out := slices.Concat(a, b)
	slices.Sort(out)
	return slices.Compact(out)
}
