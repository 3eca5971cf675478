package unpacker_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/cri/internal/layers"
	"github.com/berth-project/berth/cri/internal/unpacker"
)

// swaps is how often the racer swaps each pair; BERTH_TORTURE=1 asks for the whole number.
func swaps() int64 {
	if os.Getenv("BERTH_TORTURE") != "" {
		return 100_000
	}
	return 4_000
}

// TestRacer unpacks while another thread swaps, above the layer and in it, directories for symbolic links that lead
// out: what is outside stays as it is, whatever becomes of the layer.
func TestRacer(t *testing.T) {
	clean(t)
	j := newJail(t)
	at := func(p string) string { return filepath.Join(j.outer, p) }
	for from, to := range map[string]string{"store/tmp/2": "../../etc", "store/swap": "../etc", "other": "etc"} {
		if err := os.Symlink(to, at(from)); err != nil {
			t.Fatal(err)
		}
	}
	before := j.canaries(t)
	dir := open(t, j.layer)
	var done, layersDone atomic.Int64
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for done.Load() < swaps() || layersDone.Load() < swaps()/100 {
			swap(unix.AT_FDCWD, at("store/tmp/1"), at("store/tmp/2"))
			swap(unix.AT_FDCWD, at("store/tmp"), at("store/swap"))
			swap(int(dir.Fd()), "d", "l")
			swap(int(dir.Fd()), "d/e", "m")
			done.Add(1)
			time.Sleep(time.Duration(rand.N(60)) * time.Microsecond)
		}
		close(stop)
	}()
	members := []m{{typ: sym, name: "l", link: "../../../../etc"}, {typ: sym, name: "m", link: "/etc/ssh"}}
	for i := range 100 {
		d := fmt.Sprintf("d/e/%d", i)
		members = append(members, m{typ: reg, name: "d/passwd", body: "escaped"}, m{typ: reg, name: d, body: "escaped", mode: 0o4777},
			m{typ: reg, name: "l/passwd", body: "escaped"}, m{typ: hard, name: fmt.Sprintf("d/h%d", i), link: "l/passwd"},
			m{typ: reg, name: "d/e/.wh.passwd"}, m{typ: reg, name: "l/.wh..wh..opq"})
	}
	b := archive(t, members...).packed
	u := unpacker.New(config())
	good, bad := 0, 0
	for running := true; running; {
		res, err := u.Unpack(t.Context(), dir, bytes.NewReader(b), blobOf(b, b), layers.Limits{})
		if err == nil {
			err = res.Seal(int(dir.Fd()))
		}
		layersDone.Add(1)
		if good++; err != nil {
			good, bad = good-1, bad+1
		}
		if err := empty(dir); err != nil {
			t.Log(err) // something was swapped in between
		}
		select {
		case <-stop:
			running = false
		default:
		}
	}
	<-ended
	if after := j.canaries(t); after != before {
		t.Errorf("outside the layer: was\n%s\nis\n%s", before, after)
	}
	t.Logf("%d swaps of 4 pairs, %d layers unpacked, %d refused", done.Load(), good, bad)
}

// swap exchanges two names and lets the other side run; what is not there cannot be swapped.
func swap(dir int, a, b string) {
	_ = unix.Renameat2(dir, a, dir, b, unix.RENAME_EXCHANGE)
}

// empty removes what is in an open directory, whatever it is called now.
func empty(dir *os.File) error {
	root, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", dir.Fd()))
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // read only
	for range 100 {
		f, err := root.Open(".")
		if err != nil {
			return err
		}
		names, err := f.Readdirnames(-1)
		_ = f.Close() //nolint:errcheck // read only
		if err != nil || len(names) == 0 {
			return err
		}
		for _, n := range names {
			err = root.RemoveAll(n)
		}
		if err == nil {
			return nil
		}
	}
	return nil
}

// canaries describes what is outside and is not swapped.
func (j *jail) canaries(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	all := j.manifest(t)
	for _, p := range []string{"etc", "etc/passwd", "etc/ssh"} {
		fmt.Fprintln(&b, p, all[filepath.Join(j.outer, p)])
	}
	for _, p := range []string{"/", "/etc", "/etc/passwd", "/usr"} {
		fmt.Fprintln(&b, p, all[p])
	}
	return b.String()
}

// orphanEnv makes the test binary a daemon with one child: its program, and what is asked of it.
const orphanEnv = "BERTH_UNPACKER_ORPHAN"

// orphan is that daemon: it says the child's process id and waits to be killed.
func orphan(args []string) {
	u := unpacker.New(unpacker.Config{Program: args[0], Observe: func(pid int) { fmt.Println(pid) }})
	dir, err := os.Open(args[1])
	if err != nil {
		os.Exit(1)
	}
	pr, _ := io.Pipe() // nothing ever comes
	_, err = u.Unpack(context.Background(), dir, pr, layers.Blob{DiffID: "hang"}, layers.Limits{})
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// TestKilledWithItsParent kills a daemon: its children end with it, one that reads nothing too.
func TestKilledWithItsParent(t *testing.T) {
	for name, program := range map[string]string{"real": config().Program, "one that has been taken over": stranger(t)} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), orphanEnv+"="+program+" "+t.TempDir())
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			var pid int
			if _, err := fmt.Fscan(out, &pid); err != nil {
				t.Fatal(err)
			}
			if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid)); err != nil || string(b) != "900\n" {
				t.Errorf("oom_score_adj %q, %v", b, err)
			}
			time.Sleep(20 * time.Millisecond) // it starts
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			for end := time.Now().Add(2 * time.Second); ; time.Sleep(time.Millisecond) {
				b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
				if err != nil || bytes.Contains(b, []byte(") Z ")) {
					break
				}
				if time.Now().After(end) {
					t.Fatalf("child %d lives", pid)
				}
			}
		})
	}
}

// TestProgramReplaced deletes the program's file while it is in use, as an upgrade under a running daemon does: the
// daemon goes on with what it was.
func TestProgramReplaced(t *testing.T) {
	clean(t)
	b, err := os.ReadFile(config().Program)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "berth-cri")
	if err := os.WriteFile(path, b, 0o755); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // read only
	u := unpacker.New(unpacker.Config{Program: fmt.Sprintf("/proc/self/fd/%d", f.Fd())})
	plain := simple(t, "a", "x")
	for range 2 {
		j := newJail(t)
		if _, err := u.Unpack(t.Context(), open(t, j.layer), bytes.NewReader(plain), blobOf(plain, plain), layers.Limits{}); err != nil {
			t.Fatal(err)
		}
		j.unharmed(t)
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
}
