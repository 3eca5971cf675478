package harness

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
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

// FavourCgroup gives a group as much of a contended processor as times other groups, or processes outside of any, have:
// cpu.shares on v1, cpu.weight on v2. A hierarchy without the controller is left alone.
func FavourCgroup(path string, times int) error {
	all, err := hierarchies()
	for _, h := range all {
		for file, one := range map[string]int{"cpu.shares": 1024, "cpu.weight": 100} {
			name := filepath.Join(h+path, file)
			if _, serr := os.Stat(name); serr == nil {
				err = errors.Join(err, os.WriteFile(name, []byte(strconv.Itoa(one*times)), 0))
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

// JoinCgroup puts this process into a group in every hierarchy.
func JoinCgroup(path string) error {
	all, err := hierarchies()
	for _, h := range all {
		err = errors.Join(err, os.WriteFile(filepath.Join(h+path, "cgroup.procs"), []byte("0"), 0))
	}
	return err
}

// CgroupUsage is the CPU time that a group and all that ever were below it have used.
func CgroupUsage(path string) (time.Duration, error) {
	all, err := hierarchies()
	if err != nil {
		return 0, err
	}
	for _, h := range all {
		if b, err := os.ReadFile(filepath.Join(h+path, "cpuacct.usage")); err == nil {
			return parseTime(string(b), time.Nanosecond)
		}
	}
	for _, h := range all {
		b, err := os.ReadFile(filepath.Join(h+path, "cpu.stat"))
		if _, after, ok := strings.Cut(string(b), "usage_usec "); err == nil && ok {
			line, _, _ := strings.Cut(after, "\n")
			return parseTime(line, time.Microsecond)
		}
	}
	return 0, errors.New("no hierarchy counts the CPU time of " + path)
}

func parseTime(s string, unit time.Duration) (time.Duration, error) {
	n, err := strconv.ParseInt(strings.TrimSpace(s), 10, 64)
	return time.Duration(n) * unit, err
}

// CgroupPids are the processes in a group and all below it, in any hierarchy.
func CgroupPids(path string) ([]int, error) {
	all, err := hierarchies()
	seen := map[int]bool{}
	for _, h := range all {
		_ = filepath.WalkDir(h+path, func(p string, d fs.DirEntry, werr error) error {
			if werr != nil || !d.IsDir() {
				return nil //nolint:nilerr // a group that has just gone
			}
			b, _ := os.ReadFile(filepath.Join(p, "cgroup.procs"))
			for f := range strings.FieldsSeq(string(b)) {
				if n, err := strconv.Atoi(f); err == nil && n > 0 { // 0 is outside this pid namespace
					seen[n] = true
				}
			}
			return nil
		})
	}
	return slices.Sorted(maps.Keys(seen)), err
}
