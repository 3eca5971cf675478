// Package privilege compares what a container may do under two runtimes, by what its own process reads of itself. A
// benchmark of two runtimes is only one if both do the same.
package privilege

import (
	"fmt"
	"slices"
	"strings"
)

// Facts are a container's privileges, by name.
type Facts map[string]string

// status are the lines of /proc/self/status that tell privileges.
var status = []string{"Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Seccomp_filters", "Umask"}

// Parse reads the output of the test image's /bin/probe.
func Parse(text string) (Facts, error) {
	f, section := Facts{}, ""
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		if name, ok := strings.CutPrefix(line, "== "); ok {
			section = name
			continue
		}
		switch section {
		case "/proc/self/status":
			if key, value, ok := strings.Cut(line, ":"); ok && slices.Contains(status, key) {
				f[key] = strings.Join(strings.Fields(value), " ")
			}
		case "/proc/self/limits":
			f.limit(line)
		case "/proc/self/mountinfo":
			f.mount(line)
		case "fds":
			f.descriptor(line)
		case "dev":
			if path, mode, ok := strings.Cut(line, " "); ok {
				f["node "+path] = mode
			}
		}
	}
	for _, key := range []string{"CapEff", "Seccomp", "limit Max open files", "mount /"} {
		if f[key] == "" {
			return nil, fmt.Errorf("the probe told no %s; it said: %.300s", key, text)
		}
	}
	return f, nil
}

// descriptor reads "3 /path". What the probe's own Go runtime opens (its poller, its cgroup's CPU limit) is left
// away.
func (f Facts) descriptor(line string) {
	_, to, ok := strings.Cut(line, " ")
	if !ok || to == "anon_inode" || strings.Contains(to, "cpu.cfs_") || strings.HasSuffix(to, "/cpu.max") {
		return
	}
	f["descriptors"] = strings.TrimSpace(f["descriptors"] + " " + to)
}

// limit reads "Max open files  1024  4096  files": the name is in the first 26 columns.
func (f Facts) limit(line string) {
	if len(line) < 26 || strings.HasPrefix(line, "Limit") {
		return
	}
	f["limit "+strings.TrimSpace(line[:26])] = strings.Join(strings.Fields(line[26:]), " ")
}

// mount reads a line of mountinfo: type, flags, and for a part of a file system which. A cgroup's root and the
// host's paths differ by name only, so they are told by kind.
func (f Facts) mount(line string) {
	pre, post, _ := strings.Cut(line, " - ")
	a, b := strings.Fields(pre), strings.Fields(post)
	if len(a) < 6 || len(b) < 3 {
		return
	}
	f["mount "+a[4]] = strings.Join([]string{b[0], flags(a[5]), "super", superblock(b[2])}, " ")
}

func flags(s string) string {
	all := strings.Split(s, ",")
	slices.Sort(all)
	return strings.Join(all, ",")
}

// superblock leaves options that name files or identities away.
func superblock(s string) string {
	var keep []string
	for o := range strings.SplitSeq(s, ",") {
		key, _, _ := strings.Cut(o, "=")
		switch key {
		case "ro", "rw", "mode", "size", "gid", "hidepid", "nr_inodes", "ptmxmode":
			keep = append(keep, o)
		}
	}
	slices.Sort(keep)
	return strings.Join(keep, ",")
}

// Line is one fact of both sides.
type Line struct {
	Name, Berth, Peer string
	Reason            string // of a difference that was reviewed
}

// Equal says whether both sides are the same.
func (l Line) Equal() bool { return l.Berth == l.Peer }

// Compare lists every fact of either side, sorted, with the reasons of allowed differences.
func Compare(berth, peer Facts) []Line {
	var out []Line
	for name := range berth {
		out = append(out, Line{Name: name, Berth: berth[name], Peer: peer[name], Reason: reason(name, berth[name], peer[name])})
	}
	for name := range peer {
		if _, both := berth[name]; !both {
			out = append(out, Line{Name: name, Peer: peer[name], Reason: reason(name, "", peer[name])})
		}
	}
	slices.SortFunc(out, func(a, b Line) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// Bad are the lines that differ without a reason.
func Bad(lines []Line) []Line {
	return slices.DeleteFunc(slices.Clone(lines), func(l Line) bool { return l.Equal() || l.Reason != "" })
}
