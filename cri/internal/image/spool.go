package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/berth-project/berth/cri/internal/layers"
	"github.com/berth-project/berth/cri/internal/registry"
	"github.com/berth-project/berth/proto/errs"
)

// maxMembers bounds the members of an imported archive; an image has at most a few hundred.
const maxMembers = 100_000

// spool is an archive's members on disk, for members may come in any order. Files get numbers, not the names in
// the archive, which are only keys of a map.
type spool struct {
	dir   string
	r     io.Reader
	end   func()
	files map[string]string // member -> file
	links map[string]string // member -> member, links of old docker archives
}

func newSpool(store *layers.Store, r io.Reader) (*spool, error) {
	dir, err := store.TempDir("import")
	if err != nil {
		return nil, err
	}
	sp := &spool{dir: dir, files: map[string]string{}, links: map[string]string{}}
	if sp.r, sp.end, err = layers.Decompress(r); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return sp, nil
}

func (sp *spool) close(log *slog.Logger) {
	sp.end()
	if err := os.RemoveAll(sp.dir); err != nil {
		log.Warn("import leftovers not removed", "dir", sp.dir, "err", err)
	}
}

// fill reads the archive. limit bounds each member, 0 means 64 GiB.
func (sp *spool) fill(ctx context.Context, limit int64) error {
	if limit == 0 {
		limit = 64 << 30
	}
	buf := make([]byte, 256<<10)
	tr := tar.NewReader(sp.r)
	for n := 0; ; n++ {
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return ctx.Err()
		}
		if err := errors.Join(ctx.Err(), err); err != nil {
			return archiveError(err)
		}
		if n >= maxMembers || hdr.Size > limit || len(hdr.Name) > 4096 {
			return errs.FailedPrecondition.Errorf("archive member %.200q is over the limits", hdr.Name)
		}
		key := memberKey(hdr.Name)
		switch hdr.Typeflag {
		case tar.TypeReg:
			file := filepath.Join(sp.dir, strconv.Itoa(n))
			if err := writeMember(ctx, file, tr, buf); err != nil {
				return archiveError(err)
			}
			sp.files[key] = file
		case tar.TypeLink:
			sp.links[key] = memberKey(hdr.Linkname)
		case tar.TypeSymlink:
			sp.links[key] = memberKey(path.Join(path.Dir(key), hdr.Linkname))
		}
	}
}

func archiveError(err error) error {
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errs.FailedPrecondition.Errorf("archive: %w", err)
	}
	return err
}

func memberKey(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

func writeMember(ctx context.Context, file string, r io.Reader, buf []byte) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	for err == nil {
		if err = ctx.Err(); err == nil {
			_, err = io.CopyBuffer(struct{ io.Writer }{f}, struct{ io.Reader }{&onePart{r, 16 << 20}}, buf)
		}
		if errors.Is(err, errMore) {
			err = nil
			continue
		}
		break
	}
	return errors.Join(err, f.Close())
}

// errMore ends one part of a long copy, so that a caller who left is noticed.
var errMore = errors.New("more")

type onePart struct {
	r    io.Reader
	left int
}

// Read implements io.Reader.
func (p *onePart) Read(b []byte) (int, error) {
	if p.left <= 0 {
		return 0, errMore
	}
	n, err := p.r.Read(b)
	p.left -= n
	return n, err
}

func (sp *spool) has(name string) bool { return sp.files[name] != "" }

// open opens a member, through at most a few links.
func (sp *spool) open(name string) (*os.File, error) {
	key := memberKey(name)
	for range 8 {
		if f := sp.files[key]; f != "" {
			return os.Open(f)
		}
		next, ok := sp.links[key]
		if !ok {
			break
		}
		key = next
	}
	return nil, fmt.Errorf("archive member %.200q: %w", name, os.ErrNotExist)
}

func (sp *spool) read(name string, limit int64) ([]byte, error) {
	f, err := sp.open(name)
	if err != nil {
		return nil, errs.FailedPrecondition.Wrap(err)
	}
	defer f.Close() //nolint:errcheck // read only
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = errs.FailedPrecondition.Errorf("archive member %.200q is longer than %d bytes", name, limit)
	}
	return b, err
}

func blobName(d digest.Digest) string { return "blobs/" + d.Algorithm().String() + "/" + d.Encoded() }

// blob reads and verifies a small blob of an OCI layout.
func (sp *spool) blob(d digest.Digest, limit int64) ([]byte, error) {
	if err := registry.CheckDigest(d); err != nil {
		return nil, err
	}
	b, err := sp.read(blobName(d), limit)
	if err == nil && digest.FromBytes(b) != d {
		err = errs.FailedPrecondition.Errorf("blob %s has digest %s", d, digest.FromBytes(b))
	}
	return b, err
}
