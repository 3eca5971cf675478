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

	"github.com/berth-project/berth/cni/internal/iptables"
	"github.com/berth-project/berth/cni/internal/netconf"
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
	Version int `json:"version"`
	// Type is the plugin's type under its upstream name, and empty for type berth.
	Type        string `json:"type,omitempty"`
	Network     string `json:"network"`
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifname"`
	// Netns is the path that ADD was given; for humans, since paths are reused.
	Netns string `json:"netns"`
	// NetnsIno is the namespace's inode number, which a path that was used again does not lead to.
	NetnsIno uint64 `json:"netnsIno,omitempty"`
	MTU      int    `json:"mtu"`
	// Pod is the part that the nftables table is compiled from; Pod.Link is the record's name.
	Pod ruleset.Pod `json:"pod"`

	Namespace  string `json:"namespace,omitempty"`
	PodName    string `json:"podName,omitempty"`
	UID        string `json:"uid,omitempty"`
	CgroupPath string `json:"cgroupPath,omitempty"`
	// Created is in Unix seconds.
	Created int64 `json:"created"`

	// Links are host links that go with the attachment, besides a type berth's Pod.Link: ours are marked with the
	// record's alias, and go when it goes.
	Links []string `json:"links,omitempty"`
	// Witness is a host link that somebody else made and that lives as long as the attachment.
	Witness string `json:"witness,omitempty"`
	// Leases are addresses in directories of host-local's format.
	Leases []Lease `json:"leases,omitempty"`
	// IPTables are the attachment's rules if they are there and not in our table.
	IPTables *iptables.Rules `json:"iptables,omitempty"`
	// Bandwidth are the limits of a type berth's attachment.
	Bandwidth *netconf.Bandwidth `json:"bandwidth,omitempty"`
	// Restore is what the interface in the container was before tuning changed it.
	Restore *Restore `json:"restore,omitempty"`

	// Pending is not stored: it says that ADD has not finished.
	Pending bool `json:"-"`
}

// Lease is an address in a directory of host-local's format: <dataDir>/<network>.
type Lease struct {
	Dir  string     `json:"dir"`
	Addr netip.Addr `json:"addr"`
}

// Restore is the interface as it was; nil means that it was not changed.
type Restore struct {
	MAC      string `json:"mac,omitempty"`
	MTU      int    `json:"mtu,omitempty"`
	Promisc  *bool  `json:"promisc,omitempty"`
	Allmulti *bool  `json:"allmulti,omitempty"`
	TxQLen   *int   `json:"txQLen,omitempty"`
}

// Name is the record's file name: the link's for type berth, the type and a hash for the others.
func (r *Record) Name() string { return Name(r.Type, r.Network, r.ContainerID, r.IfName) }

// Name derives a record's name from what it is of. The type is empty for type berth.
func Name(typ, network, containerID, ifName string) string {
	link := LinkName(network, containerID, ifName)
	if typ == "" {
		return link
	}
	return typ + "-" + strings.TrimPrefix(link, ruleset.LinkPrefix)
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
	return writeJSON(s.attachment(r.Name())+pendingSuffix, r)
}

// Commit makes a pending record ready.
func (s *Store) Commit(r *Record) error {
	p := s.attachment(r.Name())
	if err := os.Rename(p+pendingSuffix, p); err != nil {
		return err
	}
	r.Pending = false
	return nil
}

// Load reads the record of a name. It fails with NotFound, or with atomicfile.ErrDamaged.
func (s *Store) Load(name string) (*Record, error) {
	r := &Record{}
	err := readJSON(s.attachment(name), r)
	if errors.Is(err, errs.NotFound) {
		r.Pending = true
		err = readJSON(s.attachment(name)+pendingSuffix, r)
	}
	if err != nil {
		return nil, err
	}
	if r.Version != formatVersion {
		return nil, errs.FailedPrecondition.Errorf("record %s has format %d, this build reads %d", name, r.Version, formatVersion)
	}
	if r.Name() != name || r.Type == "" && r.Pod.Link != name {
		return nil, fmt.Errorf("record %s speaks of %s, link %q: %w", name, r.Name(), r.Pod.Link, atomicfile.ErrDamaged)
	}
	return r, nil
}

// Remove deletes a record, whatever its state. A missing one is no error.
func (s *Store) Remove(name string) error {
	for _, p := range []string{s.attachment(name), s.attachment(name) + pendingSuffix} {
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
		name := strings.TrimSuffix(e.Name(), pendingSuffix)
		if strings.ContainsAny(name, ".") {
			_ = os.Remove(filepath.Join(dir, e.Name()))
			continue
		}
		r, err := s.Load(name)
		if errors.Is(err, atomicfile.ErrDamaged) {
			damaged = append(damaged, name)
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
