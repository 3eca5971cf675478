package test

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// secret is in every file of the host that a racer's links lead to.
const secret = "of the host alone"

// manifest is what there is below a directory of the host, with what would tell of a visit.
func manifest(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		st, ok := fi.Sys().(*syscall.Stat_t)
		if !ok {
			return errors.New("no stat")
		}
		all[name] = fmt.Sprintf("%v %d %d:%d inode %d device %d links %d %v %v", fi.Mode(), fi.Size(), st.Uid, st.Gid, st.Ino, st.Rdev, st.Nlink, st.Mtim, st.Ctim)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// stage is a volume whose names somebody exchanges with links out of it while a container is started that has it.
type stage struct {
	volume, bait string
	names        []string
	renames      atomic.Int64
}

// newStage makes bait, a tree of the host with the same names, and a volume with these names, each a directory or (the others) a
// file, and beside each a link to the host. Half of the links have a meaning inside the layer too, so that starts succeed.
func newStage(t *testing.T, layer string, dirs, files []string) *stage {
	t.Helper()
	g := &stage{volume: t.TempDir(), bait: t.TempDir(), names: slices.Concat(files, dirs)}
	write := func(name, text string) error {
		return errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text+"\n"), 0o644))
	}
	var err error
	for _, d := range dirs {
		err = errors.Join(err, write(filepath.Join(g.bait, d, "file"), secret), write(filepath.Join(g.volume, d, "file"), "the volume's"),
			write(filepath.Join(layer, g.bait, d, "file"), "the image's"))
	}
	for _, f := range files {
		err = errors.Join(err, write(filepath.Join(g.bait, f), secret), write(filepath.Join(g.volume, f), "the volume's"), write(filepath.Join(layer, g.bait, f), "the image's"))
	}
	for i, n := range g.names {
		to := filepath.Join(g.bait, n)
		switch i % 4 {
		case 1:
			to = strings.Repeat("../", 20) + to[1:]
		case 2:
			to = "/proc/self/root" + to
		case 3:
			to = "/proc/1/root" + to
		}
		err = errors.Join(err, os.Symlink(to, filepath.Join(g.volume, "evil-"+n)))
	}
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// race exchanges each name with its link, over and over, until stop is closed.
func (g *stage) race(t *testing.T, stop <-chan struct{}) {
	dir, err := unix.Open(g.volume, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Error(err)
		return
	}
	defer unix.Close(dir) //nolint:errcheck // O_PATH
	for {
		select {
		case <-stop:
			return
		default:
		}
		for _, n := range g.names {
			if err := unix.Renameat2(dir, n, dir, "evil-"+n, unix.RENAME_EXCHANGE); err != nil {
				t.Errorf("exchange %s: %v", n, err)
				return
			}
			g.renames.Add(1)
		}
	}
}

// play starts containers while two racers rename, until there were enough of both, and looks what of the host they saw or changed.
func (g *stage) play(t *testing.T, start func() (log string, err error)) {
	before := manifest(t, g.bait)
	stop := make(chan struct{})
	var racers sync.WaitGroup
	for range 2 {
		racers.Go(func() { g.race(t, stop) })
	}
	end := sync.OnceFunc(func() { close(stop); racers.Wait() })
	defer end()
	starts, good := 0, 0
	var last error
	for starts < times(20, 400) || g.renames.Load() < int64(times(2000, 100_000)) {
		starts++
		log, err := start()
		if err != nil {
			last = err
			continue
		}
		good++
		if strings.Contains(log, secret) || !strings.Contains(log, "null 1:3") || !strings.Contains(log, "kcore 0") {
			t.Errorf("start %d: the container saw %s", starts, log)
			break
		}
	}
	end()
	if after := manifest(t, g.bait); !maps.Equal(before, after) {
		t.Errorf("the host was %v, is %v", before, after)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), g.bait) {
		t.Errorf("something is mounted on the host's files, %v", err)
	}
	if good == 0 {
		t.Errorf("none of %d starts succeeded: %v", starts, last)
	}
	t.Logf("%d renames, %d starts, %d of them refused, the last: %v", g.renames.Load(), starts, starts-good, last)
}

// looks prints what a container can read of the volume, and whether two things that the runtime makes are what they should be.
const looks = `head -n 1 VOLUME 2>/dev/null; stat -c 'null %t:%T' /dev/null; echo kcore $(head -c 1 /proc/kcore 2>/dev/null | wc -c)`

// once starts a container, waits for its end and returns its output.
func (s *shim) once(sp *specs.Spec, layer string) (string, error) {
	c := s.container(sp, layer)
	if err := c.try(); err != nil {
		return "", err
	}
	defer c.cleanup()
	c.wait()
	log := c.log()
	c.delete()
	return log, nil
}

// TestRacingTargets starts containers that have a mount, a masked and a read-only path inside a volume in which another container
// renames: the path that is looked up is not the one that is mounted on (CVE-2021-30465, CVE-2023-27561, CVE-2024-45310,
// CVE-2025-31133). Whatever a start finds, it stays inside.
func TestRacingTargets(t *testing.T) {
	s, layer := launchShim(t), rootfs(t)
	g := newStage(t, layer, []string{"readonly", "work", "target", "deep"}, []string{"file", "masked"})
	source := t.TempDir()
	if err := os.WriteFile(filepath.Join(source, "inner"), []byte("mounted\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	n := 0
	g.play(t, func() (string, error) {
		sp := spec("sh", "-c", strings.ReplaceAll(looks, "VOLUME", "/vol/*/* /vol/*"))
		sp.Mounts = append(sp.Mounts, specs.Mount{Destination: "/vol", Type: "bind", Source: g.volume, Options: []string{"rbind", "rprivate", "rw"}})
		switch n++; n % 5 {
		case 0:
			bindTo(sp, source, "/vol/target")
		case 1:
			bindTo(sp, source, "/vol/deep/made/here")
		case 2:
			bindTo(sp, filepath.Join(source, "inner"), "/vol/file")
		case 3:
			sp.Linux.MaskedPaths = append(sp.Linux.MaskedPaths, "/vol/masked")
			sp.Linux.ReadonlyPaths = append(sp.Linux.ReadonlyPaths, "/vol/readonly")
		case 4:
			sp.Process.Cwd = "/vol/work"
		}
		return s.once(sp, layer)
	})
}

// TestRacingDevices is the same for what the runtime mounts in /dev, which is such a volume: the terminals and the console
// (CVE-2025-52565).
func TestRacingDevices(t *testing.T) {
	s, layer := launchShim(t), rootfs(t)
	g := newStage(t, layer, []string{"pts", "shm"}, []string{"console"})
	if err := unix.Mknod(filepath.Join(g.volume, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		t.Fatal(err)
	}
	n := 0
	g.play(t, func() (string, error) {
		sp := spec("sh", "-c", strings.ReplaceAll(looks, "VOLUME", "/dev/*/file"))
		var mounts []specs.Mount
		for _, m := range sp.Mounts {
			if !strings.HasPrefix(m.Destination, "/dev") {
				mounts = append(mounts, m)
			}
		}
		sp.Mounts = append(mounts, specs.Mount{Destination: "/dev", Type: "bind", Source: g.volume, Options: []string{"rbind", "rprivate", "rw"}},
			specs.Mount{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}})
		n++
		sp.Process.Terminal = n%2 == 0
		return s.once(sp, layer)
	})
}
