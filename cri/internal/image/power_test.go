package image_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/cri/internal/image"
)

// powerEnv makes the test binary a node whose power is cut: "work root ref…" pulls and removes until it is killed,
// "check root" looks at everything and tells what is there.
const powerEnv = "BERTH_IMAGE_POWER"

// cuts is how often the power is cut on each file system; BERTH_TORTURE=1 asks for 1,000 in all.
func cuts() int {
	if os.Getenv("BERTH_TORTURE") != "" {
		return 250
	}
	return 4
}

// telling is a layer whose files say what must be in them: the name, again and again.
func telling(t testing.TB, n int) v1.Layer {
	t.Helper()
	members := []member{dir(fmt.Sprintf("l%d", n), 0o755)}
	for f := range 30 {
		name := fmt.Sprintf("l%d/f%d", n, f)
		members = append(members, file(name, strings.Repeat(name+"|", 1+f*f*4)))
	}
	return layerOf(t, tarOf(t, members...))
}

func powerChild(args []string) error {
	s, err := image.Open(configOf(args[1]), slogDiscard())
	if err != nil {
		return err
	}
	if args[0] == "check" {
		return checkAll(s, args[1])
	}
	s.Retain(nil)
	go func() { _ = s.Run(context.Background()) }() // until the end of everything
	var wg sync.WaitGroup
	for w := range 2 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(os.Getpid()), uint64(w)))
			for {
				ref := args[2+rng.IntN(len(args)-2)]
				if rng.IntN(3) == 0 {
					fmt.Println("removing", ref)
					_ = s.Remove(context.Background(), ref)
				} else if _, err := s.Pull(context.Background(), ref, nil); err == nil {
					fmt.Println("pulled", ref)
				} else if strings.Contains(err.Error(), "input/output") {
					return
				}
			}
		})
	}
	wg.Wait()
	return nil
}

// checkAll lends every image out, which looks at each layer, reads every file, and tells what is whole.
func checkAll(s *image.Service, root string) error {
	s.Retain(nil)
	for i, img := range s.List() {
		fsys, err := s.Use(fmt.Sprint(i), img.ID)
		if err != nil {
			fmt.Println("lost", img.Tags, err)
			continue
		}
		for _, l := range fsys.Lower {
			if err := readAllFiles(l); err != nil {
				return fmt.Errorf("%v: %w", img.Tags, err)
			}
		}
		for _, t := range img.Tags {
			fmt.Println("has", t)
		}
		s.Release(fmt.Sprint(i))
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	for range 200 {
		time.Sleep(5 * time.Millisecond)
		if e, _ := os.ReadDir(filepath.Join(root, "trash")); len(e) == 0 {
			break
		}
	}
	cancel()
	return <-done
}

func readAllFiles(layer string) error {
	return filepath.WalkDir(layer, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(p, layer+"/")
		if len(b) == 0 || strings.ReplaceAll(string(b), name+"|", "") != "" {
			return fmt.Errorf("%s has %d bytes that are not what was pulled", name, len(b))
		}
		return nil
	})
}

// TestPowerCuts cuts the power at random moments of pulls and removals, on ext4 with short and long commit intervals
// and on xfs: an image that was acknowledged is whole, one that was not is whole or absent, no file of any is empty,
// and the store opens and goes on.
func TestPowerCuts(t *testing.T) {
	h := newHub(t)
	var refs []string
	for i := range 4 {
		refs = append(refs, h.push(t, fmt.Sprintf("power/%d:1", i), imageOf(t, telling(t, 0), telling(t, 1+i/2), telling(t, 10+i))))
	}
	total := map[string]int{}
	for name, c := range map[string]struct{ mkfs, options string }{
		"ext4, 600 s": {"ext4", "commit=600"}, "ext4, 5 s": {"ext4", "commit=5"}, "ext4, 1 s": {"ext4", "commit=1"}, "xfs": {"xfs", "nouuid"},
	} {
		t.Run(name, func(t *testing.T) {
			disk, mnt := filepath.Join(t.TempDir(), "disk"), t.TempDir()
			must(t, os.WriteFile(disk, nil, 0o600))
			must(t, os.Truncate(disk, 512<<20))
			if c.mkfs == "xfs" {
				run(t, "mkfs.xfs", "-q", disk)
			} else {
				run(t, "mke2fs", "-q", "-t", "ext4", "-F", disk)
			}
			run(t, "mount", "-o", "loop,"+c.options, disk, mnt)
			defer func() { unmount(t, mnt) }()
			for range cuts() {
				there := cutOnce(t, mnt, refs)
				unmount(t, mnt)
				unused(t, disk)
				run(t, "mount", "-o", "loop,"+c.options, disk, mnt)
				for k, n := range afterCut(t, filepath.Join(mnt, "images"), there) {
					total[k] += n
				}
				total["cuts"]++
			}
		})
	}
	t.Logf("%d power cuts: %d acknowledged images were whole, %d others too, %d objects in quarantine", total["cuts"], total["acknowledged"], total["others"], total["quarantine"])
}

// unmount waits until nobody has a file open there: what a killed daemon was just starting has its descriptors for a
// moment longer.
func unmount(t *testing.T, mnt string) {
	t.Helper()
	end := time.Now().Add(5 * time.Second)
	for {
		err := unix.Unmount(mnt, 0)
		if err == nil {
			return
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(end) {
			t.Fatalf("umount: %v", err)
		}
		time.Sleep(time.Millisecond)
	}
}

// unused waits until nothing has the file system any more: a killed daemon's unpackers die a moment after it.
func unused(t *testing.T, disk string) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		out, err := exec.Command("losetup", "-j", disk).CombinedOutput()
		must(t, err)
		if len(out) == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("still in use: %s", out)
		}
	}
}

// cutOnce lets a node work, cuts the power, and returns the images that it had acknowledged and not begun to remove.
func cutOnce(t *testing.T, mnt string, refs []string) map[string]bool {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), powerEnv+"=work "+filepath.Join(mnt, "images")+" "+strings.Join(refs, " "))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	var mu sync.Mutex
	there, unsure := map[string]bool{}, map[string]bool{}
	begun, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for lines, first := bufio.NewScanner(out), true; lines.Scan(); first = false {
			if first {
				close(begun)
			}
			verb, ref, _ := strings.Cut(lines.Text(), " ")
			mu.Lock()
			if there[ref] = verb == "pulled" && !unsure[ref]; verb == "removing" {
				unsure[ref] = true // the other worker may be pulling it: its word may come late
			}
			mu.Unlock()
		}
	}()
	select {
	case <-begun:
	case <-ended:
		t.Fatalf("the node ended before it had done anything: %v", cmd.Wait())
	}
	time.Sleep(time.Duration(rand.N(150)) * time.Millisecond)
	mu.Lock()
	acknowledged := map[string]bool{}
	for r, ok := range there {
		if ok {
			acknowledged[r] = true
		}
	}
	mu.Unlock()
	powerCut(t, mnt)
	must(t, cmd.Process.Kill())
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) && err != nil {
		t.Fatal(err)
	}
	<-ended
	mu.Lock()
	defer mu.Unlock()
	for r := range unsure { // removed since, perhaps before the cut
		delete(acknowledged, r)
	}
	return acknowledged
}

// afterCut checks the store in a process of its own.
func afterCut(t *testing.T, root string, acknowledged map[string]bool) map[string]int {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), powerEnv+"=check "+root)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("after the cut: %v\n%s", err, out)
	}
	has, n := map[string]bool{}, map[string]int{}
	for l := range strings.Lines(string(out)) {
		if ref, ok := strings.CutPrefix(strings.TrimSpace(l), "has "); ok {
			has[ref] = true
		}
	}
	for r := range acknowledged {
		if !has[r] {
			t.Errorf("%s was acknowledged and is gone:\n%s", r, out)
		}
		n["acknowledged"]++
	}
	n["others"] = len(has) - len(acknowledged)
	q, err := os.ReadDir(filepath.Join(root, "quarantine"))
	must(t, err)
	n["quarantine"] = len(q)
	for _, e := range q {
		must(t, os.RemoveAll(filepath.Join(root, "quarantine", e.Name())))
	}
	return n
}
