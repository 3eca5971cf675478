package unpacker_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/berth-project/berth/cri/internal/layers"
	"github.com/berth-project/berth/cri/internal/unpacker"
	"github.com/berth-project/berth/proto/errs"
)

// stranger builds the child that has been taken over.
func stranger(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "stranger")
	cmd := exec.Command("go", "build", "-trimpath", "-o", path, "./testdata/stranger")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return path
}

// clean checks that as many goroutines, descriptors and children are there as were.
func clean(t *testing.T) {
	t.Helper()
	fds, gos := descriptors(t), runtime.NumGoroutine()
	t.Cleanup(func() {
		for end := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > gos && time.Now().Before(end); {
			time.Sleep(time.Millisecond)
		}
		if n := runtime.NumGoroutine(); n > gos {
			buf := make([]byte, 1<<16)
			t.Errorf("%d goroutines, were %d\n%s", n, gos, buf[:runtime.Stack(buf, true)])
		}
		if n := descriptors(t); n > fds+1 { // the poller's
			t.Errorf("%d descriptors, were %d", n, fds)
		}
		tasks, err := filepath.Glob("/proc/self/task/*/children") // a child is its thread's
		if err != nil || len(tasks) == 0 {
			t.Errorf("threads: %v, %v", tasks, err)
		}
		for _, f := range tasks {
			if b, err := os.ReadFile(f); err == nil && len(b) > 0 { // else the thread has ended
				t.Errorf("children left: %q", b)
			}
		}
	})
}

func descriptors(t *testing.T) int {
	t.Helper()
	e, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(e)
}

// TestStranger runs children that crash, hang, lie and talk too much. Each costs one pull, with an error that says
// what happened, and nothing is left.
func TestStranger(t *testing.T) {
	clean(t)
	u := unpacker.New(unpacker.Config{Program: stranger(t), Stall: 1500 * time.Millisecond, Patience: 4 * time.Second})
	long := strings.Repeat("x", 9<<20)
	for does, want := range map[string]string{
		"hang":                             "killed: no progress for 1.5s",
		"spin":                             "killed: not done after 4s",
		"silent":                           "exit status 0: no answer",
		"exit 3":                           "exit status 3: no answer",
		"fault":                            "exit status 2: bad?[2J thing?happened",
		"killed":                           "exit status 2: SIGABRT: abort",
		"lingers":                          "the unpacker was killed: ",
		"complains":                        "killed: not done after 4s",
		"talks":                            "its answer cannot be true: more than",
		"nonsense":                         "its answer cannot be true: invalid character",
		"both":                             "its answer cannot be true: neither a result nor a failure, or both",
		"neither":                          "its answer cannot be true",
		"early":                            "done before the blob was",
		"class":                            "RegistryUnavailable: ?[31mred?second line",
		`{"result":{"bytes":-1}}`:          "cannot be true: -1 bytes",
		`{"result":{"bytes":68719476737}}`: "cannot be true: 68719476737 bytes",
		`{"result":{"inodes":-5}}`:         "cannot be true: 0 bytes, -5 inodes",
		`{"result":{"inodes":9223372036854775807}}`:                                   "cannot be true",
		`{"result":{"opaques":["../../etc"]}}`:                                        `cannot be true: name "../../etc"`,
		`{"result":{"opaques":["/etc"]}}`:                                             `cannot be true: name "/etc"`,
		`{"result":{"opaques":[""]}}`:                                                 `cannot be true: name ""`,
		`{"result":{"implicit":["a/../b"]}}`:                                          `cannot be true: name "a/../b"`,
		`{"result":{"implicit":["\u0000zz"]}}`:                                        `cannot be true: encoding/hex`,
		`{"result":{"implicit":["\u00002e2e2f61"]}}`:                                  `cannot be true: name "../a"`,
		`{"result":{"links":[{"name":"h","target":"../x"}]}}`:                         `cannot be true: name "../x"`,
		`{"result":{"implicit":["` + strings.Repeat("d/", 1100) + `d"]}}`:             `cannot be true: name "d/d/`,
		`{"result":{"implicit":["a","` + long[:60_000] + `"]}}`:                       `cannot be true: name "xxx`,
		`{"failure":{"class":"canceled","text":"` + strings.Repeat("y", 9000) + `"}}`: strings.Repeat("y", 2<<10),
	} {
		t.Run(does[:min(len(does), 60)], func(t *testing.T) {
			j := newJail(t)
			start := time.Now()
			_, err := u.Unpack(t.Context(), open(t, j.layer), bytes.NewReader(make([]byte, 3<<20)), layers.Blob{DiffID: digest.Digest(does)}, layers.Limits{})
			j.unharmed(t)
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("error %.500v, want one with %q", err, want)
			}
			switch c := errs.Of(err); {
			case c == errs.Aborted, c == errs.Internal && does == "class", c == errs.Canceled && strings.Contains(does, "canceled"):
			default:
				t.Errorf("class %v of %.300v", c, err)
			}
			if took := time.Since(start); took > 20*time.Second || len(err.Error()) > 4096 {
				t.Errorf("took %v, text of %d bytes", took, len(err.Error()))
			}
		})
	}
}

// TestStrangerCannotLeave confines itself as the real child does and tries what an attacker would; nothing works.
func TestStrangerCannotLeave(t *testing.T) {
	clean(t)
	j := newJail(t)
	u := unpacker.New(unpacker.Config{Program: stranger(t)})
	_, err := u.Unpack(t.Context(), open(t, j.layer), bytes.NewReader(nil), layers.Blob{DiffID: "escape"}, layers.Limits{})
	j.unharmed(t)
	if err == nil || !strings.HasPrefix(err.Error(), "tried 3") || !strings.HasSuffix(err.Error(), ": []") {
		t.Errorf("%v", err)
	}
}

// TestOpaqueLie checks that a mark is set on nothing but a directory of the layer.
func TestOpaqueLie(t *testing.T) {
	j := newJail(t)
	for _, err := range []error{
		os.Symlink("../../../../etc", filepath.Join(j.layer, "l")), os.Mkdir(filepath.Join(j.layer, "d"), 0o755),
		os.WriteFile(filepath.Join(j.layer, "f"), nil, 0o644), os.Symlink("d", filepath.Join(j.layer, "m")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	dir := int(open(t, j.layer).Fd())
	for p, ok := range map[string]bool{"d": true, "l": false, "l/ssh": false, "m": false, "f": false, "none": false} {
		r := layers.Result{Opaques: []string{p}}
		if err := r.Seal(dir); (err == nil) != ok {
			t.Errorf("%s: %v", p, err)
		}
	}
	j.unharmed(t)
}

// TestCancel checks that a child ends when its caller leaves, whoever is being waited for.
func TestCancel(t *testing.T) {
	clean(t)
	plain := simple(t, "a", strings.Repeat("x", 3<<20))
	for _, program := range []string{config().Program, stranger(t)} {
		u := unpacker.New(unpacker.Config{Program: program})
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		pr, pw := io.Pipe()
		go func() {
			_, _ = pw.Write(plain[:1<<20])
			<-ctx.Done()
			_ = pw.CloseWithError(ctx.Err()) // as a request's body does
		}()
		_, err := u.Unpack(ctx, open(t, t.TempDir()), pr, layers.Blob{DiffID: "hang"}, layers.Limits{})
		_ = pr.Close()
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
	}
}

// TestContent checks which of several faults is told: a blob that is not the one asked for is never the archive's
// fault, for another source may have it.
func TestContent(t *testing.T) {
	clean(t)
	plain := simple(t, "a", strings.Repeat("x", 2<<20))
	packed := gz(plain)
	good := blobOf(packed, plain)
	flipped := bytes.Clone(packed)
	flipped[len(flipped)-1] ^= 1
	hostile := archive(t, m{typ: hard, name: "h", link: "/"}).packed
	u := unpacker.New(config())
	for name, c := range map[string]struct {
		in      io.Reader
		blob    layers.Blob
		content bool
		class   errs.Class
	}{
		"good":                       {bytes.NewReader(packed), good, false, ""},
		"wrong digest":               {bytes.NewReader(packed), layers.Blob{Digest: digest.FromString("x"), Size: good.Size, DiffID: good.DiffID}, true, errs.FailedPrecondition},
		"wrong size":                 {bytes.NewReader(packed), layers.Blob{Digest: good.Digest, Size: good.Size + 1, DiffID: good.DiffID}, true, errs.FailedPrecondition},
		"wrong diffID":               {bytes.NewReader(packed), layers.Blob{Digest: good.Digest, Size: good.Size, DiffID: digest.FromString("x")}, true, errs.FailedPrecondition},
		"last byte flipped":          {bytes.NewReader(flipped), good, true, errs.FailedPrecondition},
		"truncated":                  {bytes.NewReader(packed[:len(packed)-20]), good, true, errs.FailedPrecondition},
		"longer":                     {io.MultiReader(bytes.NewReader(packed), strings.NewReader("more")), good, true, errs.FailedPrecondition},
		"a page instead":             {strings.NewReader(strings.Repeat("<html>", 1000)), good, true, errs.FailedPrecondition},
		"a bad archive instead":      {bytes.NewReader(hostile), good, true, errs.FailedPrecondition},
		"a bad archive, as promised": {bytes.NewReader(hostile), blobOf(hostile, hostile), false, errs.FailedPrecondition},
		"the connection breaks":      {io.MultiReader(bytes.NewReader(packed[:50]), broken{}), good, false, errs.Internal},
		"nothing is asked of it":     {bytes.NewReader(packed), layers.Blob{DiffID: good.DiffID}, false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := u.Unpack(t.Context(), open(t, t.TempDir()), c.in, c.blob, layers.Limits{})
			if errors.Is(err, layers.ErrContent) != c.content || errs.Of(err) != c.class {
				t.Errorf("%v of class %v", err, errs.Of(err))
			}
		})
	}
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errors.New("broken") }

// TestRefusesWithoutConfinement checks that there is no way around the child.
func TestRefusesWithoutConfinement(t *testing.T) {
	clean(t)
	u := unpacker.New(unpacker.Config{Program: filepath.Join(t.TempDir(), "none")})
	_, err := u.Unpack(t.Context(), open(t, t.TempDir()), bytes.NewReader(nil), layers.Blob{}, layers.Limits{})
	if errs.Of(err) != errs.FailedPrecondition || !strings.Contains(err.Error(), "cannot be confined") {
		t.Errorf("%v", err)
	}
	out, err := exec.Command(config().Program, unpacker.Command, digest.FromString("").String(), "0", "0", "0").CombinedOutput()
	if err == nil || !bytes.Contains(out, []byte("not the first of a pid namespace")) {
		t.Errorf("a child by hand: %v, %s", err, out)
	}
}
