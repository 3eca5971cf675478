package state

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/berth-project/berth/cni/internal/ruleset"
	"github.com/berth-project/berth/internal/atomicfile"
	"github.com/berth-project/berth/proto/errs"
)

const pendingSuffix = ".pending"

// Record is one attachment: everything that DEL, GC, CHECK and a rebuild of the kernel's state need.
//
//	(none) --Save--> pending --Commit--> ready --Remove--> (none)
//	                    \------Remove (rollback, repair)----^
type Record struct {
	Version     int    `json:"version"`
	Network     string `json:"network"`
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifname"`
	// Netns is the path that ADD was given; for humans, since paths are reused.
	Netns string `json:"netns"`
	MTU   int    `json:"mtu"`
	// Pod is the part that the nftables table is compiled from; Pod.Link is the record's name.
	Pod ruleset.Pod `json:"pod"`

	Namespace  string `json:"namespace,omitempty"`
	PodName    string `json:"podName,omitempty"`
	UID        string `json:"uid,omitempty"`
	CgroupPath string `json:"cgroupPath,omitempty"`
	// Created is in Unix seconds.
	Created int64 `json:"created"`

	// Pending is not stored: it says that ADD has not finished.
	Pending bool `json:"-"`
}

// LinkName derives the name of an attachment's host end: the prefix and 44 bits of a hash, 14 characters.
func LinkName(network, containerID, ifName string) string {
	h := fnv.New64a()
	_, _ = fmt.Fprintf(h, "%s\x00%s\x00%s", network, containerID, ifName)
	return fmt.Sprintf("%s%011x", ruleset.LinkPrefix, h.Sum64()>>20)
}

// Alias is what the host end carries for whoever looks at it with ip(8), and how the plugin knows its own.
func (r *Record) Alias() string {
	pod := "-"
	if r.PodName != "" {
		pod = r.Namespace + "/" + r.PodName
	}
	a := fmt.Sprintf("berth %s %s %s %s", r.Network, r.ContainerID, r.IfName, pod)
	return a[:min(len(a), 255)]
}

// Is says whether the record is that of an attachment.
func (r *Record) Is(network, containerID, ifName string) bool {
	return r.Network == network && r.ContainerID == containerID && r.IfName == ifName
}

func (s *Store) attachment(link string) string { return filepath.Join(s.dir, "attachments", link) }

// Addrs are the addresses of the attachment.
func (r *Record) Addrs() []netip.Addr { return r.Pod.Addrs }

// Save writes a record as pending.
func (s *Store) Save(r *Record) error {
	r.Version, r.Pending = formatVersion, true
	return writeJSON(s.attachment(r.Pod.Link)+pendingSuffix, r)
}

// Commit makes a pending record ready.
func (s *Store) Commit(r *Record) error {
	p := s.attachment(r.Pod.Link)
	if err := os.Rename(p+pendingSuffix, p); err != nil {
		return err
	}
	r.Pending = false
	return nil
}

// Load reads the record of a link. It fails with NotFound, or with atomicfile.ErrDamaged.
func (s *Store) Load(link string) (*Record, error) {
	r := &Record{}
	err := readJSON(s.attachment(link), r)
	if errors.Is(err, errs.NotFound) {
		r.Pending = true
		err = readJSON(s.attachment(link)+pendingSuffix, r)
	}
	if err != nil {
		return nil, err
	}
	if r.Version != formatVersion {
		return nil, errs.FailedPrecondition.Errorf("record %s has format %d, this build reads %d", link, r.Version, formatVersion)
	}
	if r.Pod.Link != link {
		return nil, fmt.Errorf("record %s speaks of %s: %w", link, r.Pod.Link, atomicfile.ErrDamaged)
	}
	return r, nil
}

// Remove deletes a record, whatever its state. A missing one is no error.
func (s *Store) Remove(link string) error {
	for _, p := range []string{s.attachment(link), s.attachment(link) + pendingSuffix} {
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// List reads all records. Damaged ones are moved to quarantine and named in damaged; files that a killed write
// left are removed.
func (s *Store) List() (records []*Record, damaged []string, err error) {
	dir := filepath.Join(s.dir, "attachments")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, nil, err
	}
	for _, e := range entries {
		link := strings.TrimSuffix(e.Name(), pendingSuffix)
		if !strings.HasPrefix(link, ruleset.LinkPrefix) || strings.ContainsAny(link, ".") {
			_ = os.Remove(filepath.Join(dir, e.Name()))
			continue
		}
		r, err := s.Load(link)
		if errors.Is(err, atomicfile.ErrDamaged) {
			damaged = append(damaged, link)
			if err := s.Quarantine(filepath.Join(dir, e.Name())); err != nil {
				return nil, nil, err
			}
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		records = append(records, r)
	}
	return records, damaged, nil
}

// Peek lists the records that can be read, without the lock and without changing anything: for a human's eyes.
func Peek(dir string) ([]*Record, error) {
	s := &Store{dir: dir}
	entries, err := os.ReadDir(filepath.Join(dir, "attachments"))
	if err != nil {
		return nil, err
	}
	var out []*Record
	for _, e := range entries {
		if r, err := s.Load(strings.TrimSuffix(e.Name(), pendingSuffix)); err == nil {
			out = append(out, r)
		}
	}
	return out, nil
}
