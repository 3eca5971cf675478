// Package census counts everything a node program can leave behind: processes, mounts, network namespaces, links,
// cgroups, nftables objects, loop devices, sockets and files. A test takes one before and one after; the
// difference must be empty.
package census

import (
	"bufio"
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Census is what there is, by kind; each thing by a name that is the same as long as it is the same thing.
type Census map[string]map[string]bool

// Take looks at the whole machine; files are looked for below dirs only.
func Take(dirs ...string) Census {
	c := Census{}
	c.processes()
	c.mounts()
	c.netns()
	c.links()
	c.cgroups()
	c.nft()
	c.loops()
	for _, d := range dirs {
		c.files(d)
	}
	return c
}

func (c Census) add(kind, name string) {
	if c[kind] == nil {
		c[kind] = map[string]bool{}
	}
	c[kind][name] = true
}

// processes are counted only if they are Berth's, a test's or in a group of theirs: other people's come and go.
func (c Census) processes() {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		comm, err := os.ReadFile(d + "/comm")
		if err != nil {
			continue
		}
		group, _ := os.ReadFile(d + "/cgroup")
		args, _ := os.ReadFile(d + "/cmdline")
		if strings.HasPrefix(string(comm), "berth") || bytes.Contains(group, []byte("/berth-")) {
			c.add("process", fmt.Sprintf("%s %s (%s)%s", filepath.Base(d), strings.TrimSpace(string(comm)), argv(args), groupOf(group)))
		}
	}
}

func argv(cmdline []byte) string {
	return strings.TrimSpace(string(bytes.ReplaceAll(cmdline[:min(len(cmdline), 200)], []byte{0}, []byte(" "))))
}

// groupOf is the first group of Berth's in a /proc/PID/cgroup.
func groupOf(file []byte) string {
	for line := range strings.Lines(string(file)) {
		if _, path, ok := strings.Cut(line, ":/"); ok && strings.Contains(path, "berth-") {
			return " in /" + strings.TrimSpace(path)
		}
	}
	return ""
}

// Of keeps, of the kinds that are the whole machine's in any namespace, what names the given lab ("berth-NAME"), and
// of the nftables tables Berth's, because the kubelet makes some of its own.
func (c Census) Of(lab string) Census {
	for _, kind := range []string{"process", "cgroup", "loop"} {
		maps.DeleteFunc(c[kind], func(name string, _ bool) bool { return !strings.Contains(name, lab) })
	}
	maps.DeleteFunc(c["nft"], func(name string, _ bool) bool { return !strings.Contains(name, "berth") })
	return c
}

func (c Census) mounts() {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return
	}
	defer f.Close() //nolint:errcheck // read only
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if w := strings.Fields(sc.Text()); len(w) > 4 {
			c.add("mount", w[0]+" "+w[4])
		}
	}
}

func (c Census) netns() {
	ents, _ := os.ReadDir("/run/netns")
	for _, e := range ents {
		c.add("netns", e.Name())
	}
}

func (c Census) links() {
	ifs, _ := net.Interfaces()
	for _, i := range ifs {
		c.add("link", fmt.Sprintf("%d %s", i.Index, i.Name))
	}
}

func (c Census) cgroups() {
	_ = filepath.WalkDir("/sys/fs/cgroup", func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.Contains(p, "berth") {
			c.add("cgroup", p)
		}
		return nil
	})
}

func (c Census) nft() {
	out, err := exec.Command("nft", "list", "tables").Output()
	if err != nil {
		return
	}
	for line := range strings.Lines(string(out)) {
		c.add("nft", strings.TrimSpace(line))
	}
}

func (c Census) loops() {
	all, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, l := range all {
		b, _ := os.ReadFile(l)
		c.add("loop", l+" "+strings.TrimSpace(string(b)))
	}
}

func (c Census) files(dir string) {
	_ = filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		if err == nil {
			c.add("file", p)
		}
		return nil
	})
}

// Diff is what later has and c has not, one line each, sorted.
func (c Census) Diff(later Census) []string {
	var out []string
	for _, kind := range slices.Sorted(maps.Keys(later)) {
		for _, name := range slices.Sorted(maps.Keys(later[kind])) {
			if !c[kind][name] {
				out = append(out, kind+" "+name)
			}
		}
	}
	return out
}

// Settle takes a census again and again until nothing is left over c, at most for the given time, because a dying
// network namespace takes its links with it a moment after the last reference; it returns what is left.
func (c Census) Settle(limit time.Duration, dirs ...string) []string {
	for end := time.Now().Add(limit); ; time.Sleep(50 * time.Millisecond) {
		left := c.Diff(Take(dirs...))
		if len(left) == 0 || time.Now().After(end) {
			return left
		}
	}
}
