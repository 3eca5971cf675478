package image_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/berth-project/berth/cri/internal/image"
	"github.com/berth-project/berth/cri/internal/unpacker/unpackertest"
	"github.com/berth-project/berth/internal/failpoint"
	"github.com/berth-project/berth/proto/errs"
)

// childEnv makes the test binary the program that a crash test kills: "root ref".
const childEnv = "BERTH_IMAGE_CHILD"

func TestMain(m *testing.M) {
	if args := strings.Fields(os.Getenv(childEnv)); len(args) == 2 {
		os.Exit(child(args[0], args[1]))
	}
	if args := strings.Fields(os.Getenv(powerEnv)); len(args) > 1 {
		if err := powerChild(args); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if args := strings.Fields(os.Getenv(descriptorsEnv)); len(args) == 2 {
		if err := scarce(args[0], args[1]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	remove, err := unpackertest.Build()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	if err := remove(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// child pulls an image and, if BERTH_REMOVE is set, removes it.
func child(root, ref string) int {
	pull := func(s *image.Service) error {
		_, err := s.Pull(context.Background(), ref, nil)
		return err
	}
	if os.Getenv("BERTH_NO_PULL") != "" {
		pull = func(*image.Service) error { return nil }
	}
	err := failpoint.Load("")
	if os.Getenv("BERTH_USE") != "" {
		err = errors.Join(err, useAll(root, ref, pull))
	} else if err == nil {
		var s *image.Service
		if s, err = image.Open(configOf(root), slogDiscard()); err == nil {
			err = pull(s)
			s.Retain(nil)
			if err == nil && os.Getenv("BERTH_REMOVE") != "" {
				err = s.Remove(context.Background(), ref)
			}
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// runChild tells whether the child was killed by its failpoint.
func runChild(t *testing.T, root, ref, fail string, env ...string) bool {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), append(env, childEnv+"="+root+" "+ref, failpoint.Env+"="+fail)...)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() && ws.Signal() == syscall.SIGKILL {
			return true
		}
	}
	if err != nil {
		t.Fatalf("child with %s: %v\n%s", fail, err, out)
	}
	return false
}

func crashLayers() [][]member {
	return [][]member{
		{dir("srv", 0o2750), file("srv/a", "aaa"), file("b", "bbb")},
		{file("srv/new", "implicit parent: needs a fix"), wh("b")},
		{file("c", "ccc")},
	}
}

// whole runs the collector once, and checks that the image is there, whole, and alone on the disk.
func whole(t *testing.T, root, ref string) {
	t.Helper()
	s := open(t, root)
	s.Retain(nil)
	img, err := s.Pull(t.Context(), ref, nil)
	if err != nil {
		t.Fatal(err)
	}
	rootfs, err := s.Use("c", img.ID)
	if err != nil {
		t.Fatal(err)
	}
	want := t.TempDir()
	reference(t, want, crashLayers()...)
	compare(t, mounted(t, rootfs), readTree(t, want))
	s.Release("c")
	runFor(t, s)
	for d, n := range map[string]int{"layers": 4, "images": 1, "configs": 1, "trash": 0, "tmp": 1, "quarantine": 0} {
		e, err := os.ReadDir(filepath.Join(root, d))
		if err != nil || len(e) != n {
			t.Errorf("%s: %v, %v, want %d", d, e, err, n)
		}
	}
}

// runFor runs the service until the trash is empty.
func runFor(t *testing.T, s *image.Service) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	for range 200 {
		time.Sleep(10 * time.Millisecond)
		if e, _ := os.ReadDir(filepath.Join(s.Usage().Mountpoint, "trash")); len(e) == 0 {
			break
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// TestKilledAtEveryStep kills a pull, and a pull with a removal, at each failpoint, and pulls again.
func TestKilledAtEveryStep(t *testing.T) {
	h := newHub(t)
	var ls []v1.Layer
	for _, l := range crashLayers() {
		ls = append(ls, layerOf(t, tarOf(t, l...)))
	}
	ref := h.push(t, "crash:1", imageOf(t, ls...))
	met := map[string]bool{}
	for _, name := range failpoint.Names() {
		if !strings.HasPrefix(name, "image.") && !strings.HasPrefix(name, "layers.") {
			continue
		}
		for _, hit := range []string{"kill", "2*off->kill"} {
			for _, env := range []string{"BERTH_KEEP=1", "BERTH_REMOVE=1"} {
				t.Run(name+" "+hit+" "+env, func(t *testing.T) {
					root := t.TempDir()
					met[name] = runChild(t, root, ref, name+"="+hit, env) || met[name]
					whole(t, root, ref)
				})
			}
		}
	}
	for _, name := range failpoint.Names() {
		if ours := strings.HasPrefix(name, "image.") || strings.HasPrefix(name, "layers."); ours && !met[name] {
			t.Errorf("failpoint %s was never met", name)
		}
	}
}

// TestErrorAtEveryStep lets each step fail instead: the pull fails cleanly, and the next succeeds in the same
// process.
func TestErrorAtEveryStep(t *testing.T) {
	h := newHub(t)
	var ls []v1.Layer
	for _, l := range crashLayers() {
		ls = append(ls, layerOf(t, tarOf(t, l...)))
	}
	ref := h.push(t, "crash:1", imageOf(t, ls...))
	for _, name := range failpoint.Names() {
		if !strings.HasPrefix(name, "image.") && !strings.HasPrefix(name, "layers.staged") && !strings.HasPrefix(name, "layers.commit") {
			continue
		}
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			s := open(t, root)
			must(t, failpoint.Arm(name+"=1*error(injected)"))
			_, err := s.Pull(t.Context(), ref, nil)
			must(t, failpoint.Arm(""))
			if err == nil || !strings.Contains(err.Error(), "injected") {
				t.Errorf("error %v", err)
			}
			if len(s.List()) != 0 {
				t.Errorf("listed: %v", s.List())
			}
			whole(t, root, ref)
		})
	}
}

// TestRestart checks what a new process makes of what the old one left: images in use, removed ones, names.
func TestRestart(t *testing.T) {
	h := newHub(t)
	root := t.TempDir()
	s := open(t, root)
	used, err := s.Pull(t.Context(), h.push(t, "used:1", imageOf(t, numbered(t, 1))), nil)
	must(t, err)
	idle, err := s.Pull(t.Context(), h.push(t, "idle:1", imageOf(t, numbered(t, 2))), nil)
	must(t, err)
	rootfs, err := s.Use("container", used.ID)
	must(t, err)
	must(t, s.Remove(t.Context(), used.ID))
	u := s.Usage()

	s = open(t, root) // the old process is dead
	if _, err := s.Get(used.ID); errs.Of(err) != errs.NotFound {
		t.Error("a removed image is back")
	}
	if got, err := s.Get(idle.Tags[0]); err != nil || got.ID != idle.ID || got.Size != idle.Size || len(got.Chain) != 1 {
		t.Errorf("%+v, %v", got, err)
	}
	if got := s.Usage(); got.Bytes != u.Bytes || got.Inodes != u.Inodes {
		t.Errorf("usage %+v, was %+v", got, u)
	}
	runFor(t, s) // before Retain nothing may be deleted
	if _, err := os.Stat(rootfs.Lower[0]); err != nil {
		t.Fatal("layers of a running container were collected")
	}
	s.Retain(map[string]string{"container": used.ID})
	if again, err := s.Use("container", used.ID); err != nil || again.Lower[0] != rootfs.Lower[0] {
		t.Errorf("Use after a restart: %v, %v", again, err)
	}
	s.Release("container")
	if _, err := os.Stat(rootfs.Lower[0]); err == nil {
		t.Error("layers of a removed, released image are there")
	}
	s = open(t, root)
	s.Retain(nil)
	if n := len(s.List()); n != 1 {
		t.Errorf("%d images", n)
	}
}

// TestIncompleteIsGivenUp checks that an image which lost a layer does not keep the others for ever.
func TestIncompleteIsGivenUp(t *testing.T) {
	h := newHub(t)
	own := numbered(t, 2)
	ownID, _ := own.DiffID()
	root := t.TempDir()
	_, err := open(t, root).Pull(t.Context(), h.push(t, "a:1", imageOf(t, numbered(t, 1), own)), nil)
	must(t, err)
	must(t, os.RemoveAll(filepath.Join(root, "layers", ownID.Hex)))
	s := open(t, root)
	s.DropIncomplete()
	if u := s.Usage(); u.Bytes == 0 {
		t.Error("given up before the containers are known")
	}
	s.Retain(nil)
	s.DropIncomplete()
	if u := s.Usage(); u.Bytes != 0 || u.Inodes != 0 {
		t.Errorf("usage %+v", u)
	}
}

// TestDamage breaks one thing at a time and checks that only that is lost, and that a pull mends it.
func TestDamage(t *testing.T) {
	h := newHub(t)
	common, own, third := numbered(t, 1), numbered(t, 2), numbered(t, 3)
	refA := h.push(t, "a:1", imageOf(t, common, own))
	refB := h.push(t, "b:1", imageOf(t, third))
	ownID, _ := own.DiffID()
	ownBlob, _ := own.Digest()
	for name, break_ := range map[string]func(root, id string) error{
		"record flipped": func(root, id string) error {
			return os.WriteFile(filepath.Join(root, "images", id[7:]+".image"), []byte("x"), 0o600)
		},
		"record empty":  func(root, id string) error { return os.Truncate(filepath.Join(root, "images", id[7:]+".image"), 0) },
		"config empty":  func(root, id string) error { return os.Truncate(filepath.Join(root, "configs", id[7:]), 0) },
		"config gone":   func(root, id string) error { return os.Remove(filepath.Join(root, "configs", id[7:])) },
		"layer gone":    func(root, _ string) error { return os.RemoveAll(filepath.Join(root, "layers", ownID.Hex)) },
		"layer record":  func(root, _ string) error { return os.Truncate(filepath.Join(root, "layers", ownID.Hex, "layer"), 5) },
		"layer content": func(root, _ string) error { return os.RemoveAll(filepath.Join(root, "layers", ownID.Hex, "fs")) },
		"boot, 0 bytes": func(root, _ string) error {
			return errors.Join(os.Truncate(filepath.Join(root, "layers", ownID.Hex, "fs/d/2"), 0), os.Remove(filepath.Join(root, "clean")))
		},
		"boot, all good": func(root, _ string) error { return os.Remove(filepath.Join(root, "clean")) },
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			s := open(t, root)
			a, err := s.Pull(t.Context(), refA, nil)
			must(t, err)
			_, err = s.Pull(t.Context(), refB, nil)
			must(t, err)
			must(t, break_(root, a.ID))
			s = open(t, root)
			s.Retain(nil)
			if _, err := s.Get(refB); err != nil {
				t.Errorf("another image is affected: %v", err)
			}
			_, err = s.Use("c", a.ID)
			if lost := name != "boot, all good"; lost != (errs.Of(err) == errs.NotFound) {
				t.Errorf("Use: %v", err)
			}
			if _, gerr := s.Get(refA); (gerr == nil) != (err == nil) {
				t.Errorf("Use says %v, Get %v", err, gerr)
			}
			h.reset()
			if _, err := s.Pull(t.Context(), refA, nil); err != nil {
				t.Fatal(err)
			}
			for k := range h.reset() {
				if strings.Contains(k, "GET /v2/a/blobs/") && !strings.HasSuffix(k, a.ID) && !strings.HasSuffix(k, ownBlob.String()) {
					t.Errorf("fetched again: %s", k)
				}
			}
			if _, err := s.Use("c", a.ID); err != nil {
				t.Errorf("after the pull: %v", err)
			}
		})
	}
}
