package conform

import (
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

var (
	counters = regexp.MustCompile(`packets \d+ bytes \d+|\[\d+:\d+\]`)
	handles  = regexp.MustCompile(`@[a-z0-9]+`)
)

// census lists what an attachment can leave on the host: links, addresses, routes and neighbours, rules of both kinds,
// qdiscs, and files where plugins keep their state.
func (t *T) census() []string {
	var out []string
	for _, cmd := range []string{
		"ip -o link", "ip -o -4 addr", "ip -o route show table all", "ip -o neigh show nud permanent", "tc qdisc",
		"nft list ruleset", "iptables-save", "ip6tables-save",
	} {
		text, err := t.host.sh(cmd)
		if err != nil {
			t.Fatalf("census: %v", err)
		}
		for line := range strings.Lines(text) {
			line = counters.ReplaceAllString(strings.TrimSpace(line), "")
			if strings.HasPrefix(line, "#") || strings.Contains(line, "fe80:") || strings.Contains(line, "multicast") ||
				line == "" || strings.HasPrefix(line, "type ") || strings.HasPrefix(line, "anycast ") || strings.HasPrefix(line, "local fd") {
				continue
			}
			if cmd == "ip -o link" { // states and addresses of a bridge change by themselves
				_, rest, _ := strings.Cut(line, ": ")
				name, _, _ := strings.Cut(rest, ":")
				line = "link " + handles.ReplaceAllString(name, "")
			}
			if strings.Contains(line, "linkdown") { // a bridge without ports
				line = strings.TrimSpace(strings.ReplaceAll(line, "linkdown", ""))
			}
			out = append(out, strings.Join(strings.Fields(line), " "))
		}
	}
	for _, dir := range []string{"/var/lib/cni", "/run/cni", "/run/berth/cni/attachments"} {
		_ = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() && d.Name() != "lock" && !strings.HasPrefix(d.Name(), "last_reserved_ip.") {
				out = append(out, p)
			}
			return nil
		})
	}
	slices.Sort(out)
	return out
}

// left is what is there and was not, within the second that the kernel may take to be done.
func (t *T) left(before []string) []string {
	for end := time.Now().Add(time.Second); ; time.Sleep(30 * time.Millisecond) {
		var left []string
		for _, l := range t.census() {
			if !slices.Contains(before, l) {
				left = append(left, l)
			}
		}
		if left == nil || time.Now().After(end) {
			return left
		}
	}
}

// nothingLeft fails if something is there that was not.
func (t *T) nothingLeft(before []string, after string) {
	if l := t.left(before); len(l) > 0 {
		t.Failf("%s leaves %q", after, l)
	}
}

// warm attaches and detaches one container, so that what all containers share is there, and returns a census.
func (t *T) warm() []string {
	a := t.attach("1.0.0", nil)
	t.detach(a, nil)
	time.Sleep(50 * time.Millisecond)
	return t.census()
}
