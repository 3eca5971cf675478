package unpacker

import (
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"os"
	"strconv"

	"github.com/opencontainers/go-digest"

	"github.com/berth-project/berth/cri/internal/layers"
	"github.com/berth-project/berth/proto/errs"
)

// Unpacker unpacks blobs in confined children. Its methods may be called from many goroutines. It has nothing
// running while nobody calls.
type Unpacker struct {
	cfg  Config
	nest nest
}

// New makes an Unpacker; it starts nothing.
func New(cfg Config) *Unpacker {
	cfg = cfg.withDefaults()
	return &Unpacker{cfg: cfg, nest: nest{program: cfg.Program}}
}

// Unpack fills dir, which must be empty and the caller's own, with the layer in body: b.Size bytes with digest
// b.Digest that unpack to the diffID b.DiffID. It returns when its child has ended and has been waited for; body's
// reads must end when ctx does. What was made before an error stays, for the caller to remove.
//
// Errors: layers.ErrContent, where another copy may be good, before what the archive is blamed for
// (layers.ErrArchive, errs.FailedPrecondition); errs.ResourceExhausted for a full disk; errs.Aborted for a child that
// ended without an answer, made no progress, or lied; errs.FailedPrecondition where the kernel cannot confine it.
func (u *Unpacker) Unpack(ctx context.Context, dir *os.File, body io.Reader, b layers.Blob, limits layers.Limits) (*layers.Result, error) {
	if err := u.nest.acquire(); err != nil {
		return nil, err
	}
	defer u.nest.release()
	c, err := u.start(dir, b.DiffID, limits)
	if err != nil {
		return nil, err
	}
	defer c.end()
	stop := context.AfterFunc(ctx, func() { c.kill("it was cancelled") })
	defer stop()
	// 1. Hash and pass on, until the child has had enough, or the end.
	sum, err := c.feed(body)
	if err != nil {
		return nil, cause(ctx, err)
	}
	// 2. Whatever the child says of a blob that is not the one asked for is of no interest. One that gave up early
	// says why first: more than is allowed is not read to its end.
	var failed error
	if !sum.complete {
		if failed = c.answer().failure(); failed == nil {
			return nil, errs.Aborted.Errorf("the unpacker: %w: it was done before the blob was", errLie)
		}
		if !errors.Is(failed, layers.ErrArchive) || errors.Is(failed, layers.ErrLimit) {
			return nil, cause(ctx, failed)
		}
		if err := sum.rest(body); err != nil {
			return nil, cause(ctx, err)
		}
	}
	if err := sum.check(b); err != nil {
		return nil, err
	}
	if failed != nil {
		return nil, failed
	}
	// 3. A result is checked as a stranger's word.
	a := c.answer()
	if err := a.failure(); err != nil {
		return nil, cause(ctx, err)
	}
	return a.result(limits)
}

// cause prefers the caller's own leaving to what followed from it.
func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// sum is what is known of the compressed stream.
type sum struct {
	hash     hash.Hash
	total    int64
	complete bool // read to its end, and passed on
}

// feed passes body on to the child. A child that takes no more is no error.
func (c *child) feed(body io.Reader) (*sum, error) {
	s := &sum{hash: sha256.New()}
	for {
		buf, err := c.slot()
		if err != nil {
			return s, nil //nolint:nilerr // its answer says why
		}
		n, rerr := s.read(body, buf)
		if n > 0 && c.ring.push(n) != nil {
			return s, nil
		}
		c.fed.Add(int64(n))
		if errors.Is(rerr, io.EOF) {
			s.complete = true
			return s, c.ring.end()
		}
		if rerr != nil {
			return s, rerr
		}
	}
}

// read fills the buffer at least by half, so that a slow link's small reads do not cost a switch each.
func (s *sum) read(body io.Reader, buf []byte) (n int, err error) {
	for n < len(buf)/2 && err == nil {
		var k int
		k, err = body.Read(buf[n:])
		n += k
	}
	_, _ = s.hash.Write(buf[:n]) // never fails
	s.total += int64(n)
	return n, err
}

// rest hashes what the child did not want: whether the archive is bad or this copy of it.
func (s *sum) rest(body io.Reader) error {
	buf := make([]byte, chunk)
	for {
		if _, err := s.read(body, buf); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

func (s *sum) check(b layers.Blob) error {
	if b.Digest == "" {
		return nil
	}
	if s.total != b.Size {
		return errs.FailedPrecondition.Errorf("blob %s: %w: %d bytes instead of %d", b.Digest, layers.ErrContent, s.total, b.Size)
	}
	if got := digest.NewDigest(digest.SHA256, s.hash); got != b.Digest {
		return errs.FailedPrecondition.Errorf("blob %s: %w: it is %s", b.Digest, layers.ErrContent, got)
	}
	return nil
}

// arguments are what Main reads.
func arguments(diffID digest.Digest, l layers.Limits) []string {
	n := func(v int64) string { return strconv.FormatInt(v, 10) }
	return []string{program, Command, diffID.String(), n(l.Bytes), n(l.Entries), n(l.Names)}
}
