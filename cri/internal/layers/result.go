package layers

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// Result says what was unpacked and what depends on lower layers.
type Result struct {
	// Bytes of regular files and Inodes made, the layer's root not counted. A hard link is neither.
	Bytes  int64 `json:"bytes"`
	Inodes int64 `json:"inodes"`
	// Implicit are directories that no entry describes: they stand for whatever is at that path below. Made with
	// mode 0755, root, time 0, for the case that nothing is.
	Implicit []string `json:"implicit,omitempty"`
	// Links are hard links whose target is not in this layer.
	Links []Link `json:"links,omitempty"`
	// Opaques are directories below the root that hide what lower layers have there. Whoever owns the layer gives
	// them overlayfs's mark (Seal), for that takes CAP_SYS_ADMIN.
	Opaques []string `json:"opaques,omitempty"`
	// Opaque says that the layer hides everything below it: overlayfs has no such mark for a layer's root, so
	// whoever stacks layers stops here.
	Opaque bool `json:"opaque,omitempty"`
}

// Link is a hard link to a file of a lower layer. Paths are clean, relative to the root, without symlinks in Name.
type Link struct {
	Name   string `json:"name"`
	Target string `json:"target"`
}

// Seal gives the opaque directories of an unpacked layer their mark, trusted.overlay.opaque, and clears the list. Each
// is opened beneath dir and without links, whatever the list says. It needs CAP_SYS_ADMIN.
func (r *Result) Seal(dir int) error {
	for _, p := range r.Opaques {
		fd, err := openBeneath(dir, p, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
		if err != nil {
			return fmt.Errorf("opaque directory %.300q: %w", p, err)
		}
		err = unix.Fsetxattr(fd, "trusted.overlay.opaque", []byte("y"), 0)
		_ = unix.Close(fd) //nolint:errcheck // nothing written
		if err != nil {
			return fmt.Errorf("opaque directory %.300q: fsetxattr: %w", p, err)
		}
	}
	r.Opaques = nil
	return nil
}

// open is how many bytes the names in r take, some for each entry included.
func (r *Result) open() (n int) {
	for _, names := range [][]string{r.Implicit, r.Opaques} {
		for _, p := range names {
			n += len(p) + 32
		}
	}
	for _, l := range r.Links {
		n += len(l.Name) + len(l.Target) + 64
	}
	return n
}

// Check refuses a result that Apply cannot have made under these limits: one that comes from a process which reads
// what strangers wrote says nothing that later steps could not bear. That its counts are true, nobody checks.
func (r *Result) Check(limits Limits) error {
	limits = limits.withDefaults()
	if r.Bytes < 0 || r.Bytes > limits.Bytes || r.Inodes < 0 || r.Inodes > limits.Entries+limits.Names/64 {
		return fmt.Errorf("%d bytes, %d inodes", r.Bytes, r.Inodes)
	}
	if n := r.open(); n > maxOpen {
		return fmt.Errorf("%d bytes of names", n)
	}
	names := slices.Concat(r.Implicit, r.Opaques)
	for _, l := range r.Links {
		names = append(names, l.Name, l.Target)
	}
	for _, p := range names {
		if clean, err := cleanName(p); err != nil || clean != p || p == "" {
			return fmt.Errorf("name %.100q", p)
		}
	}
	return nil
}

func (r *Result) sort() {
	slices.Sort(r.Implicit)
	slices.Sort(r.Opaques)
	slices.SortFunc(r.Links, func(a, b Link) int { return strings.Compare(a.Name, b.Name) })
}

// Quote returns r with names that JSON can carry: those that are not UTF-8 become hexadecimal behind a NUL, which no
// name holds.
func (r *Result) Quote() Result {
	q, _ := r.rename(func(p string) (string, error) { //nolint:errcheck // it has none
		if utf8.ValidString(p) {
			return p, nil
		}
		return "\x00" + hex.EncodeToString([]byte(p)), nil
	})
	return q
}

// Unquote is the inverse of Quote.
func (r *Result) Unquote() (Result, error) {
	return r.rename(func(p string) (string, error) {
		coded, ok := strings.CutPrefix(p, "\x00")
		if !ok {
			return p, nil
		}
		b, err := hex.DecodeString(coded)
		return string(b), err
	})
}

func (r *Result) rename(to func(string) (string, error)) (Result, error) {
	out := *r
	var first error
	one := func(p string) string {
		p, err := to(p)
		if first == nil {
			first = err
		}
		return p
	}
	all := func(ps []string) []string {
		ps = slices.Clone(ps)
		for i := range ps {
			ps[i] = one(ps[i])
		}
		return ps
	}
	out.Implicit, out.Opaques, out.Links = all(r.Implicit), all(r.Opaques), slices.Clone(r.Links)
	for i, l := range out.Links {
		out.Links[i] = Link{Name: one(l.Name), Target: one(l.Target)}
	}
	return out, first
}
