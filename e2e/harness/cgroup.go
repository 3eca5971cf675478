package harness

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// hierarchies are the cgroup mounts of this machine.
func hierarchies() ([]string, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var all []string
	for line := range strings.Lines(string(b)) {
		pre, post, _ := strings.Cut(line, " - ")
		f := strings.Fields(pre)
		if (strings.HasPrefix(post, "cgroup ") || strings.HasPrefix(post, "cgroup2 ")) && len(f) > 4 && f[3] == "/" {
			all = append(all, f[4])
		}
	}
	return all, nil
}

// MakeCgroup makes a group in every hierarchy.
func MakeCgroup(path string) error {
	all, err := hierarchies()
	for _, h := range all {
		err = errors.Join(err, os.MkdirAll(h+path, 0o755))
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} { // v1: empty sets take no task
			if b, rerr := os.ReadFile(filepath.Join(h, file)); rerr == nil && strings.HasSuffix(h, "cpuset") {
				err = errors.Join(err, os.WriteFile(filepath.Join(h+path, file), b, 0o644))
			}
		}
	}
	return err
}

// RemoveCgroup removes a group and all below it from every hierarchy; processes in it are killed first.
func RemoveCgroup(path string) error {
	all, err := hierarchies()
	for range 50 {
		busy := false
		for _, h := range all {
			_ = filepath.WalkDir(h+path, func(p string, d fs.DirEntry, werr error) error {
				if werr == nil && d.IsDir() {
					_ = os.WriteFile(filepath.Join(p, "cgroup.kill"), []byte("1"), 0)
				}
				return nil
			})
			if rerr := rmTree(h + path); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
				busy = true
			}
		}
		if !busy {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
	return errors.Join(err, errors.New("cgroup "+path+" is still in use"))
}

func rmTree(dir string) error {
	ents, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range ents {
		if e.IsDir() {
			if err := rmTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return syscall.Rmdir(dir)
}
