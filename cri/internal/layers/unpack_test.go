package layers_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/berth-project/berth/cri/internal/layers"
	"github.com/berth-project/berth/proto/errs"
)

func gz(b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, _ = w.Write(b)
	_ = w.Close()
	return out.Bytes()
}

func zst(t testing.TB, b []byte, opts ...zstd.EOption) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil, opts...)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close() //nolint:errcheck // nothing buffered
	return w.EncodeAll(b, nil)
}

func blobOf(packed, plain []byte) layers.Blob {
	return layers.Blob{Digest: digest.FromBytes(packed), Size: int64(len(packed)), DiffID: digest.FromBytes(plain)}
}

func unpack(t testing.TB, ctx context.Context, r io.Reader, b layers.Blob) (string, error) { //nolint:revive // t first
	t.Helper()
	root := t.TempDir()
	d, err := os.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close() //nolint:errcheck // read only
	_, err = layers.Unpack(ctx, d, r, b.DiffID, layers.Limits{Bytes: 32 << 20, Entries: 2500})
	return root, err
}

func TestUnpackFormats(t *testing.T) {
	big := strings.Repeat("0123456789abcdef", 200_000)
	plain := archive(t, e{typ: reg, name: "a", body: "x"}, e{typ: reg, name: "big", body: big})
	half := len(plain) / 2
	skippable := append([]byte{0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3}, zst(t, plain)...)
	for name, c := range map[string]struct {
		in    []byte
		plain []byte
	}{
		"plain":                      {plain, plain},
		"gzip":                       {gz(plain), plain},
		"gzip, members":              {append(gz(plain[:half]), gz(plain[half:])...), plain},
		"gzip, zeros after":          {append(gz(plain), make([]byte, 1000)...), plain},
		"gzip, garbage after":        {append(gz(plain), "garbage"...), plain},
		"zstd":                       {zst(t, plain), plain},
		"zstd, frames":               {append(zst(t, plain[:half]), zst(t, plain[half:])...), plain},
		"zstd, skippable first":      {skippable, plain},
		"zstd, window":               {zst(t, plain, zstd.WithWindowSize(64<<20)), plain},
		"trailing data in the layer": {gz(append(bytes.Clone(plain), "trailing"...)), append(bytes.Clone(plain), "trailing"...)},
		"empty":                      {nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			root, err := unpack(t, t.Context(), &slow{b: c.in}, blobOf(c.in, c.plain))
			if err != nil {
				t.Fatal(err)
			}
			if b, err := os.ReadFile(filepath.Join(root, "big")); len(c.in) > 0 && (err != nil || string(b) != big) {
				t.Errorf("content differs: %d bytes, %v", len(b), err)
			}
		})
	}
}

// slow gives odd amounts, to move the buffer boundaries about.
type slow struct {
	b []byte
	n int
}

func (s *slow) Read(p []byte) (int, error) {
	if len(s.b) == 0 {
		return 0, io.EOF
	}
	s.n = s.n*7%60_001 + 1
	n := copy(p, s.b[:min(len(s.b), s.n)])
	s.b = s.b[n:]
	return n, nil
}

func TestUnpackRefuses(t *testing.T) {
	plain := archive(t, e{typ: reg, name: "a", body: strings.Repeat("x", 100_000)})
	packed := gz(plain)
	good := blobOf(packed, plain)
	flipped := bytes.Clone(packed)
	flipped[len(flipped)-1] ^= 1
	bomb := gz(append(archive(t), make([]byte, 44<<20)...))
	hostile := gz(archive(t, e{typ: hard, name: "h", link: "/"}))
	for name, c := range map[string]struct {
		in      io.Reader
		blob    layers.Blob
		content bool // ErrContent: another source may help
	}{
		"wrong diffID":          {bytes.NewReader(packed), layers.Blob{Digest: good.Digest, Size: good.Size, DiffID: digest.FromString("x")}, true},
		"last byte flipped":     {bytes.NewReader(flipped), good, false},
		"truncated":             {bytes.NewReader(packed[:len(packed)-20]), good, false},
		"not what it was":       {strings.NewReader("<html>"), good, false},
		"bad archive":           {bytes.NewReader(hostile), blobOf(hostile, nil), false},
		"bomb after the end":    {bytes.NewReader(bomb), blobOf(bomb, nil), false},
		"connection breaks":     {io.MultiReader(bytes.NewReader(packed[:50]), broken{}), good, false},
		"zstd window of 2 GiB":  {bytes.NewReader([]byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8, 0, 0, 0}), layers.Blob{DiffID: good.DiffID}, false},
		"zstd, then nothing":    {bytes.NewReader([]byte{0x28, 0xb5, 0x2f, 0xfd}), layers.Blob{DiffID: good.DiffID}, false},
		"gzip, broken header":   {bytes.NewReader([]byte{0x1f, 0x8b, 9}), layers.Blob{DiffID: good.DiffID}, false},
		"gzip, broken checksum": {bytes.NewReader(flipped), layers.Blob{DiffID: good.DiffID}, false},
	} {
		t.Run(name, func(t *testing.T) {
			before := runtime.NumGoroutine()
			_, err := unpack(t, t.Context(), c.in, c.blob)
			if err == nil || errors.Is(err, layers.ErrContent) != c.content {
				t.Errorf("error %v, ErrContent wanted: %v", err, c.content)
			}
			if got := errs.Of(err); got != errs.FailedPrecondition && name != "connection breaks" {
				t.Errorf("class %v of %v", got, err)
			}
			// one that has sent its last result may still be on its way out
			for end := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("%d goroutines left", runtime.NumGoroutine()-before)
				}
			}
		})
	}
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errors.New("broken") }

func TestUnpackCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	pr, pw := io.Pipe()
	go func() {
		_, _ = pw.Write(gz(archive(t, e{typ: reg, name: "a", body: "x"}))[:30])
		cancel()
		_ = pw.CloseWithError(context.Canceled) // as a request body ends with its context
	}()
	if _, err := unpack(t, ctx, pr, layers.Blob{DiffID: digest.FromString("x")}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func openStore(t testing.TB, root string) *layers.Store {
	t.Helper()
	s, err := layers.Open(root, 2, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// fill is a Builder that makes one file.
func fill(ctx context.Context, d *os.File) (*layers.Result, error) {
	b, _ := tarFile()
	return layers.Apply(ctx, d, bytes.NewReader(b), layers.Limits{})
}

func tarFile() ([]byte, error) {
	return append(raw("a", reg, "00000000005", "12345"), make([]byte, 1024)...), nil
}

func TestEnsureIsShared(t *testing.T) {
	s := openStore(t, t.TempDir())
	var builds int
	gate := make(chan struct{})
	build := func(ctx context.Context, d *os.File) (*layers.Result, error) {
		builds++
		select {
		case <-gate:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		return fill(ctx, d)
	}
	var wg sync.WaitGroup
	left, leave := context.WithCancel(t.Context())
	for i := range 10 {
		ctx := t.Context()
		if i%2 == 0 {
			ctx = left
		}
		wg.Go(func() {
			if err := s.Ensure(ctx, "x", build); (err != nil) != (i%2 == 0) {
				t.Errorf("waiter %d: %v", i, err)
			}
		})
	}
	time.Sleep(20 * time.Millisecond)
	leave() // half of them, perhaps the one who began it
	time.Sleep(20 * time.Millisecond)
	close(gate)
	wg.Wait()
	if builds != 1 {
		t.Errorf("%d builds", builds)
	}
	if err := s.Commit(t.Context(), []string{"x"}); err != nil {
		t.Fatal(err)
	}
	if b, i := s.Usage(); b != 5 || i != 1 {
		t.Errorf("usage %d, %d", b, i)
	}
	for range 5 {
		if _, ok := s.Info("x"); !ok {
			t.Fatal("gone too early")
		}
		s.Unref("x")
	}
	if _, ok := s.Info("x"); ok {
		t.Error("there without references")
	}
	if b, i := s.Usage(); b != 0 || i != 0 {
		t.Errorf("usage %d, %d", b, i)
	}
}

// TestLastWaiterCancels checks that work stops, and leaves nothing, when nobody wants it any more, and that a
// newcomer gets a run of its own.
func TestLastWaiterCancels(t *testing.T) {
	root := t.TempDir()
	s := openStore(t, root)
	stopped := make(chan struct{})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	err := s.Ensure(ctx, "x", func(ctx context.Context, _ *os.File) (*layers.Result, error) {
		<-ctx.Done()
		close(stopped)
		return nil, ctx.Err()
	})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
	select {
	case <-stopped:
	default:
		t.Error("the work was still running when the last waiter was back")
	}
	if err := s.Ensure(t.Context(), "x", fill); err != nil {
		t.Fatal(err)
	}
}

// TestOthersFailureIsNotMine checks that a waiter tries for itself what another's credentials could not.
func TestOthersFailureIsNotMine(t *testing.T) {
	s := openStore(t, t.TempDir())
	started, release := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		err := s.Ensure(t.Context(), "x", func(context.Context, *os.File) (*layers.Result, error) {
			close(started)
			<-release
			return nil, errs.Unauthenticated.Errorf("no")
		})
		if errs.Of(err) != errs.Unauthenticated {
			t.Errorf("first: %v", err)
		}
	})
	<-started
	wg.Go(func() {
		if err := s.Ensure(t.Context(), "x", fill); err != nil {
			t.Errorf("second: %v", err)
		}
	})
	time.Sleep(20 * time.Millisecond)
	close(release)
	wg.Wait()
}

func TestDamageIsQuarantined(t *testing.T) {
	root := t.TempDir()
	s := openStore(t, root)
	for _, id := range []string{"good", "record", "gone", "emptied"} {
		if err := s.Ensure(t.Context(), id, fill); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Commit(t.Context(), []string{"good", "record", "gone", "emptied"}); err != nil {
		t.Fatal(err)
	}
	at := func(p ...string) string { return filepath.Join(append([]string{root, "layers"}, p...)...) }
	for _, err := range []error{
		os.WriteFile(at("record", "layer"), []byte("berth-sealed-1 00000000 3\nabc"), 0o600),
		os.RemoveAll(at("gone", "fs")),
		os.Truncate(at("emptied", "fs", "a"), 0),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	s = openStore(t, root)
	s.Suspect()
	for id, want := range map[string]bool{"good": true, "record": false, "gone": false, "emptied": false} {
		if got := s.Ref(id) && s.Verify(id) == nil; got != want {
			t.Errorf("layer %s usable: %v", id, got)
		}
	}
	if q, err := os.ReadDir(filepath.Join(root, "quarantine")); err != nil || len(q) != 3 {
		t.Errorf("quarantine: %v, %v", q, err)
	}
	if b, i := s.Usage(); b != 5 || i != 1 {
		t.Errorf("usage %d, %d", b, i)
	}
}

// TestTrashAndSweep checks that what is not referred to goes away, also what a dead process left.
func TestTrashAndSweep(t *testing.T) {
	root := t.TempDir()
	s := openStore(t, root)
	if err := s.Ensure(t.Context(), "orphan", fill); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(t.Context(), []string{"orphan"}); err != nil {
		t.Fatal(err)
	}
	if err := s.Ensure(t.Context(), "staged", fill); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, root) // the process died
	if err := s.Sweep(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	deadline := time.Now().Add(5 * time.Second)
	left := -1
	for time.Now().Before(deadline) && left != 0 {
		left = 0
		for _, d := range []string{"trash", "layers"} {
			e, err := os.ReadDir(filepath.Join(root, d))
			if err != nil {
				t.Fatal(err)
			}
			left += len(e)
		}
		time.Sleep(5 * time.Millisecond)
	}
	cancel()
	if err := <-done; err != nil || left != 0 {
		t.Errorf("%d left, %v", left, err)
	}
	if e, _ := os.ReadDir(filepath.Join(root, "tmp")); len(e) != 1 {
		t.Errorf("tmp: %v", e)
	}
}

// BenchmarkUnpack unpacks one gzip layer of 2,000 files.
func BenchmarkUnpack(b *testing.B) {
	var es []e
	for i := range 2000 {
		es = append(es, e{typ: reg, name: "d/" + digest.FromString(string(rune(i))).Encoded(), body: strings.Repeat("berth ", 1500)})
	}
	plain := archive(b, es...)
	packed := gz(plain)
	b.SetBytes(int64(len(plain)))
	for range b.N {
		if _, err := unpack(b, context.Background(), bytes.NewReader(packed), blobOf(packed, plain)); err != nil {
			b.Fatal(err)
		}
	}
}
