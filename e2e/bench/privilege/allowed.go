package privilege

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// allowed are the reviewed differences: which fact, what must hold of both values, and why Berth's is no privilege.
// A prefix ends in a star.
var allowed = []struct {
	name string
	ok   func(berth, peer string) bool
	why  string
}{
	{"limit Max open files", sameHard, "soft limit 1024 as under systemd, same hard limit; the probe's Go raised what it found"},
	{"mount /proc/*", bothNull, "masked by the host's /dev/null, read-only, instead of the container's"},
	{"mount /proc/*", stricter, "flags on the mount as well, not only on the superblock"},
	{"mount /sys", stricter, "read-only by its mount instead of its superblock"},
	{"mount /sys/*", stricter, "flags on the mount as well, not only on the superblock"},
	{"mount /dev/shm", stricter, "stricter"},
	{"mount /etc/*", file, "the runtime's file lies on another file system; flags at least as strict"},
	{"mount /dev/termination-log", file, "flags at least as strict"},
}

func reason(name, berth, peer string) string {
	if berth == peer || berth == "" || peer == "" {
		return ""
	}
	for _, a := range allowed {
		prefix, open := strings.CutSuffix(a.name, "*")
		if (name == prefix || open && strings.HasPrefix(name, prefix)) && a.ok(berth, peer) {
			return a.why
		}
	}
	return ""
}

// sameHard: "SOFT HARD files".
func sameHard(berth, peer string) bool {
	_, b, _ := strings.Cut(berth, " ")
	_, p, _ := strings.Cut(peer, " ")
	return b == p && b != ""
}

// bothNull: one is the devtmpfs, the other a tmpfs with device nodes, and nothing may be written to Berth's inode.
func bothNull(berth, peer string) bool {
	return strings.HasPrefix(berth, "devtmpfs ") && strings.HasPrefix(peer, "tmpfs ") && has(berth, "ro", "noexec", "nosuid")
}

// stricter: the same type, and whatever restricts the peer's mount restricts Berth's mount.
func stricter(berth, peer string) bool {
	bt, _, _ := strings.Cut(berth, " ")
	pt, _, _ := strings.Cut(peer, " ")
	return bt == pt && file(berth, peer)
}

// file: whatever restricts the peer's mount restricts Berth's.
func file(berth, peer string) bool {
	for _, flag := range []string{"ro", "nodev", "noexec", "nosuid"} {
		if has(peer, flag) && !has(berth, flag) {
			return false
		}
	}
	return true
}

// has says whether a mount has all of the flags: those of the mount, or of its superblock for ro.
func has(fact string, want ...string) bool {
	all := strings.FieldsFunc(fact, func(r rune) bool { return r == ' ' || r == ',' })
	for _, w := range want {
		if !slices.Contains(all, w) {
			return false
		}
	}
	return true
}

// Print writes the table: what tells identity and power in full, limits, mounts and nodes as one line each when all
// of a kind are equal, and every difference.
func Print(w io.Writer, lines []Line) {
	same := map[string]int{}
	for _, l := range lines {
		kind, _, grouped := strings.Cut(l.Name, " ")
		if grouped && l.Equal() {
			same[kind]++
			continue
		}
		mark := "="
		if !l.Equal() {
			mark = "≠"
		}
		fmt.Fprintf(w, "  %s %-28s %-44s", mark, l.Name, or(l.Berth))
		if !l.Equal() {
			fmt.Fprintf(w, " peer: %s", or(l.Peer))
		}
		if l.Reason != "" {
			fmt.Fprintf(w, " (%s)", l.Reason)
		}
		fmt.Fprintln(w)
	}
	for _, kind := range []string{"limit", "mount", "node"} {
		fmt.Fprintf(w, "  = %d %ss equal\n", same[kind], kind)
	}
}

func or(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
