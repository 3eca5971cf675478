package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-project/berth/proto/errs"
)

// maxResumes bounds how often one blob's connection may break; a break after at least resumeCredit new bytes is
// free, so that a long download over a bad line ends, and a short one that never moves does too.
const (
	maxResumes   = 8
	resumeCredit = 1 << 20
)

// Sources is how many hosts a blob can be had from.
func (r *Repository) Sources() int {
	n := 0
	for _, c := range r.conns {
		if c.host.pull {
			n++
		}
	}
	return n
}

// Blob streams a blob of exactly d.Size bytes, from the host number skip (mod Sources) on. A connection that
// breaks or stalls is resumed where it broke, so what is read is one unbroken stream; it is not verified, for the
// reader hashes it anyway. Where the content then turns out wrong, the caller asks again with the next skip.
// Close it. Reads end when ctx does.
func (r *Repository) Blob(ctx context.Context, d ocispec.Descriptor, skip int) (io.ReadCloser, error) {
	b := &blob{ctx: ctx, repo: r, desc: d}
	for _, c := range r.conns {
		if c.host.pull {
			b.from = append(b.from, c)
		}
	}
	if len(b.from) == 0 {
		return nil, errs.FailedPrecondition.Errorf("%s: no host may be pulled from", r.ref.Domain)
	}
	skip %= len(b.from)
	b.from = append(b.from[skip:len(b.from):len(b.from)], b.from[:skip]...)
	if d.Size == 0 {
		return b, nil
	}
	return b, b.connect()
}

// blob is one download.
//
//	connect -> reading --error, stall, early end--> connect at off (next host after two failures in a row)
//	                   --off == size--> EOF
type blob struct {
	ctx  context.Context //nolint:containedctx // a stream's life is one call's
	repo *Repository
	desc ocispec.Descriptor
	from []*conn // the current host first

	off     int64
	breaks  int // since the last resumeCredit bytes
	credit  int64
	body    io.ReadCloser
	discard int64 // bytes of body to drop: the host ignored the range
	watch   *watch
}

// connect opens the body at b.off on the first host that gives it.
func (b *blob) connect() error {
	var failed []error
	for range b.from {
		err := b.open(b.from[0])
		if err == nil {
			return nil
		}
		if b.ctx.Err() != nil {
			return err
		}
		failed = append(failed, err)
		b.rotate()
	}
	last := failed[len(failed)-1]
	if len(failed) == 1 {
		return last
	}
	return errs.Of(last).Errorf("%w (before that: %w)", last, errors.Join(failed[:len(failed)-1]...))
}

func (b *blob) rotate() { b.from = append(b.from[1:], b.from[0]) }

func (b *blob) open(c *conn) error {
	ctx, cancel := context.WithCancel(b.ctx)
	header := http.Header{"Accept": {"*/*"}}
	if b.off > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-", b.off))
	}
	resp, err := c.get(ctx, http.MethodGet, c.url(b.repo.ref, "blobs/"+b.desc.Digest.String()), header)
	if err == nil && b.off > 0 && resp.StatusCode == http.StatusRequestedRangeNotSatisfiable {
		drain(resp) // a host that cannot resume: take it from the start and drop what is known
		header.Del("Range")
		resp, err = c.get(ctx, http.MethodGet, c.url(b.repo.ref, "blobs/"+b.desc.Digest.String()), header)
	}
	if err != nil {
		cancel()
		return err
	}
	discard, err := b.accept(resp, c)
	if err != nil {
		drain(resp)
		cancel()
		return err
	}
	b.body, b.discard = resp.Body, discard
	b.watch = newWatch(b.ctx, b.repo.cfg)
	b.watch.abort = cancel
	return nil
}

// accept checks status and length and says how many bytes to drop first.
func (b *blob) accept(resp *http.Response, c *conn) (discard int64, err error) {
	start := int64(0)
	switch resp.StatusCode {
	case http.StatusOK:
		discard = b.off
	case http.StatusPartialContent:
		var end, total int64
		rng := resp.Header.Get("Content-Range")
		if n, err := fmt.Sscanf(rng, "bytes %d-%d/%d", &start, &end, &total); n < 2 && err != nil || start != b.off || n == 3 && total != b.desc.Size {
			return 0, errs.Unavailable.Errorf("%s: blob %s: range %.60q does not fit offset %d", c.host, b.desc.Digest, rng, b.off)
		}
	default:
		return 0, statusError(resp, c.host.String(), "blob "+b.desc.Digest.String())
	}
	if enc := resp.Header.Get("Content-Encoding"); enc != "" && !strings.EqualFold(enc, "identity") {
		return 0, errs.Unavailable.Errorf("%s: blob %s: unasked content encoding %.20q", c.host, b.desc.Digest, enc)
	}
	if n := resp.ContentLength; n >= 0 && n != b.desc.Size-start {
		return 0, errs.FailedPrecondition.Errorf("%s: blob %s: %d bytes instead of %d", c.host, b.desc.Digest, n, b.desc.Size-start)
	}
	return discard, nil
}

// Read implements io.Reader.
func (b *blob) Read(p []byte) (int, error) {
	for {
		if b.off >= b.desc.Size {
			return 0, b.end()
		}
		if b.body == nil {
			if err := b.connect(); err != nil {
				return 0, err
			}
		}
		if left := b.desc.Size - b.off + b.discard; int64(len(p)) > left {
			p = p[:left]
		}
		n, err := b.watch.read(b.body, p)
		n = b.dropped(p, n)
		b.off += int64(n)
		if b.credit += int64(n); b.credit >= resumeCredit {
			b.breaks, b.credit = 0, 0
		}
		if err != nil && b.off < b.desc.Size {
			if err := b.broken(err); err != nil {
				return n, err
			}
		}
		if n > 0 || len(p) == 0 {
			return n, nil
		}
	}
}

// dropped removes from p[:n] what is still to be discarded.
func (b *blob) dropped(p []byte, n int) int {
	k := int(min(b.discard, int64(n)))
	if k > 0 {
		b.discard -= int64(k)
		copy(p, p[k:n])
	}
	return n - k
}

// broken closes the connection and says whether another may be tried.
func (b *blob) broken(cause error) error {
	b.shut()
	if err := b.ctx.Err(); err != nil {
		return err
	}
	b.breaks++
	if b.breaks > maxResumes {
		return errs.Unavailable.Errorf(Unreachable+"%s: blob %s: broke %d times, last at byte %d of %d: %w",
			b.from[0].host, b.desc.Digest, b.breaks, b.off, b.desc.Size, cause)
	}
	if b.breaks%2 == 0 {
		b.rotate()
	}
	return sleep(b.ctx, b.from[0].pause(b.breaks))
}

// end checks that the body ends where the descriptor says.
func (b *blob) end() error {
	if b.body == nil {
		return io.EOF
	}
	var one [1]byte
	n, _ := b.watch.read(b.body, one[:]) //nolint:errcheck // any end is an end
	b.shut()
	if n > 0 {
		return errs.FailedPrecondition.Errorf("%s: blob %s is longer than its %d bytes", b.from[0].host, b.desc.Digest, b.desc.Size)
	}
	return io.EOF
}

func (b *blob) shut() {
	if b.body == nil {
		return
	}
	b.watch.stop()
	b.watch.abort()
	_ = b.body.Close() //nolint:errcheck // read side
	b.body = nil
}

// Close ends the download.
func (b *blob) Close() error {
	b.shut()
	if b.repo.closed.Load() {
		b.repo.closeIdle()
	}
	return nil
}
