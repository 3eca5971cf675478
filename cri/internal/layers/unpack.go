package layers

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/berth-project/berth/proto/errs"
)

// ErrContent is wrapped by errors that mean a blob is not what its digest, size or diffID says. Asking another
// source may help.
var ErrContent = errors.New("content does not match its digest")

// maxZstdWindow is the most memory a zstd frame may ask for; RFC 8878 recommends 8 MiB, "--ultra" makes 128.
const maxZstdWindow = 128 << 20

// entryOverhead is what an archive member may take beside its content: headers, extended attributes, padding.
const entryOverhead = 4 << 10

// Blob is what a layer is made of: its compressed form and the diffID that it must unpack to. An empty Digest is
// not checked (an import's member).
type Blob struct {
	Digest digest.Digest
	Size   int64
	DiffID digest.Digest
}

// Unpack is Apply for a compressed stream: gzip, zstd or plain by its first bytes, with the digest diffID once it is
// unpacked. Inflating and writing run at the same time on recycled buffers. It reads packed to its end, after an
// error too, but for an error that wraps ErrLimit. It returns when all reads have ended; they must end when ctx does.
func Unpack(ctx context.Context, dir *os.File, packed io.Reader, diffID digest.Digest, limits Limits) (*Result, error) {
	ctx, cancel := context.WithCancel(ctx)
	plain := startStage(ctx, func() (io.Reader, func(), error) { return Decompress(packed) })
	defer func() {
		cancel()
		plain.wait()
	}()
	most := limits.withDefaults()
	stream := &counted{r: plain, h: sha256.New(), left: most.Bytes + most.Entries*entryOverhead + 1<<20}
	res, err := Apply(ctx, dir, stream, limits)
	if err != nil && (!errors.Is(err, ErrArchive) || errors.Is(err, ErrLimit)) {
		return nil, err
	}
	_, rest := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{stream}, make([]byte, 64<<10))
	if err = cmpErr(err, rest); errors.Is(rest, ErrLimit) {
		return nil, err
	}
	plain.wait() // from here on packed is read by nobody else
	if _, derr := io.CopyBuffer(struct{ io.Writer }{io.Discard}, packed, make([]byte, 64<<10)); derr != nil {
		return nil, cmpErr(err, fmt.Errorf("rest of the blob: %w", derr))
	}
	if err != nil {
		return nil, err
	}
	if got := digest.NewDigest(digest.SHA256, stream.h); got != diffID {
		return nil, errs.FailedPrecondition.Errorf("layer %s: %w: it unpacks to %s", diffID, ErrContent, got)
	}
	return res, nil
}

func cmpErr(first, second error) error {
	if first != nil {
		return first
	}
	return second
}

// counted hashes and bounds the uncompressed stream.
type counted struct {
	r    io.Reader
	h    hash.Hash
	left int64
}

// Read implements io.Reader.
func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.h.Write(p[:n])
	if c.left -= int64(n); c.left < 0 {
		return n, errs.FailedPrecondition.Errorf("%w: %w: it unpacks to more than is allowed", ErrArchive, ErrLimit)
	}
	return n, err
}

// Decompress recognises a stream by its magic number, as every peer does: media types lie. What follows the last
// gzip member is dropped, as gzip(1) does; the digests cover it anyway. The function must be called at the end.
func Decompress(r io.Reader) (io.Reader, func(), error) {
	br := bufio.NewReaderSize(r, 128<<10)
	magic, err := br.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, err
	}
	switch {
	case len(magic) >= 2 && magic[0] == 0x1f && magic[1] == 0x8b:
		g := &gzipMembers{br: br}
		return g, func() {}, g.next()
	case len(magic) == 4 && (string(magic) == "\x28\xb5\x2f\xfd" || magic[0]&0xf0 == 0x50 && string(magic[1:]) == "\x2a\x4d\x18"):
		z, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(maxZstdWindow))
		if err != nil {
			return nil, nil, errs.FailedPrecondition.Errorf("%w: zstd: %w", ErrArchive, err)
		}
		return packedReader{z, "zstd"}, z.Close, nil
	}
	return br, func() {}, nil
}

// packedReader classes what a decompressor says about its input.
type packedReader struct {
	r    io.Reader
	kind string
}

// Read implements io.Reader.
func (p packedReader) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	return n, packedError(p.kind, err)
}

func packedError(kind string, err error) error {
	var c errs.Class
	if err == nil || errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &c) ||
		errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return errs.FailedPrecondition.Errorf("%w: %s: %w", ErrArchive, kind, err)
}

// gzipMembers reads gzip members one after the other.
type gzipMembers struct {
	br *bufio.Reader
	zr *gzip.Reader
}

func (g *gzipMembers) next() (err error) {
	if g.zr == nil {
		g.zr, err = gzip.NewReader(g.br)
	} else {
		err = g.zr.Reset(g.br)
	}
	if err != nil {
		return packedError("gzip", err)
	}
	g.zr.Multistream(false)
	return nil
}

// Read implements io.Reader.
func (g *gzipMembers) Read(p []byte) (int, error) {
	for {
		n, err := g.zr.Read(p)
		if n > 0 && errors.Is(err, io.EOF) {
			err = nil
		}
		if n > 0 || !errors.Is(err, io.EOF) {
			return n, packedError("gzip", err)
		}
		magic, err := g.br.Peek(2)
		if err != nil || magic[0] != 0x1f || magic[1] != 0x8b {
			if err != nil && !errors.Is(err, io.EOF) {
				return 0, err
			}
			return 0, io.EOF
		}
		if err := g.next(); err != nil {
			return 0, err
		}
	}
}

// chunk is a buffer on its way from a stage to its reader.
type chunk struct {
	b   []byte
	err error
}

// stage runs a reader in a goroutine of its own, a few buffers ahead of whoever reads the stage.
type stage struct {
	ctx  context.Context //nolint:containedctx // one unpack's
	full chan chunk
	free chan []byte
	done chan struct{}
	rest []byte
	buf  []byte
	err  error
}

const (
	chunkSize = 256 << 10
	chunks    = 4
)

// startStage opens a reader in a new goroutine and pumps it. The caller must wait.
func startStage(ctx context.Context, open func() (io.Reader, func(), error)) *stage {
	s := &stage{ctx: ctx, full: make(chan chunk, chunks), free: make(chan []byte, chunks), done: make(chan struct{})}
	for range chunks {
		s.free <- nil
	}
	go func() {
		defer close(s.done)
		defer func() {
			if p := recover(); p != nil { // a decompressor's bug must cost one layer, not the daemon
				s.send(chunk{err: errs.Internal.Errorf("panic while unpacking: %v", p)})
			}
		}()
		r, end, err := open()
		if err != nil {
			s.send(chunk{err: err})
			return
		}
		defer end()
		for s.pump(r) {
		}
	}()
	return s
}

// pump fills one buffer and passes it on; false is the end.
func (s *stage) pump(r io.Reader) bool {
	var b []byte
	select {
	case b = <-s.free:
	case <-s.ctx.Done():
		s.send(chunk{err: s.ctx.Err()})
		return false
	}
	if b == nil {
		b = make([]byte, chunkSize)
	}
	n, err := readSome(r, b[:chunkSize])
	return s.send(chunk{b: b[:n], err: err}) && err == nil
}

// readSome fills b at least by half, so that a slow link's small reads do not cost a switch each.
func readSome(r io.Reader, b []byte) (n int, err error) {
	for n < len(b)/2 && err == nil {
		var k int
		k, err = r.Read(b[n:])
		n += k
	}
	return n, err
}

func (s *stage) send(c chunk) bool {
	select {
	case s.full <- c:
		return true
	case <-s.ctx.Done():
		return false
	}
}

// Read implements io.Reader. When the context ends, so does the stream.
func (s *stage) Read(p []byte) (int, error) {
	for len(s.rest) == 0 {
		if s.err != nil {
			return 0, s.err
		}
		if s.buf != nil {
			s.free <- s.buf // never blocks: there are as many places as buffers
			s.buf = nil
		}
		select {
		case c := <-s.full:
			s.buf, s.rest, s.err = c.b, c.b, c.err
		case <-s.ctx.Done():
			s.err = s.ctx.Err()
		}
	}
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

func (s *stage) wait() { <-s.done }
