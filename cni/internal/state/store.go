// Package state keeps what the plugin knows between two of its processes: one record per attachment, one per
// network, and the lock under which everything changes. It lives in a directory below /run, mode 0700:
//
//	lock                 flock(2)ed by every verb; holds the boot id, one byte that says "a change is under way", and
//	                     when nftables elements were deleted last
//	attachments/<name>   one attachment, sealed JSON, named after its host end or its type; <name>.pending while ADD
//	                     runs
//	networks/<name>      the pools and exclusions of a network, sealed JSON
//	pools/<subnet>       the addresses of a subnet (package ipam)
//	leases/<hash>/       the same for directories of leases that host-local keeps elsewhere (package hostlocal)
//	quarantine/          records that were damaged
//
// Nothing is synced to disk: a killed process leaves the page cache intact, and a power cut ends every
// attachment. A process that dies in the middle of a change leaves the byte set, and whoever takes the lock next
// repairs before doing anything else (package podnet).
package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/berth-project/berth/internal/atomicfile"
	"github.com/berth-project/berth/proto/errs"
	"golang.org/x/sys/unix"
)

// formatVersion is that of records; a record of a later one is refused, never guessed at.
const formatVersion = 1

// Store is the locked state directory. One process holds it at a time.
type Store struct {
	dir  string
	lock *os.File
	turn *Turn
	boot string
	// fresh says whether the last change ended; deleted is when the last nftables element was deleted.
	fresh   bool
	deleted int64
	header  string
}

// Open takes the lock, waiting up to patience, and reads the header. It fails with Unavailable when somebody else holds the
// lock for that long. turn is how a process that goes on waits; it is nil in one that ends with its answer.
func Open(dir, bootID string, patience time.Duration, turn *Turn) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("state lock: %w", err)
	}
	if turn == nil {
		err = flock(f, patience)
	} else {
		err = turn.take(f, patience)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	s := &Store{dir: dir, lock: f, turn: turn, boot: bootID}
	b := make([]byte, 128)
	n, _ := f.ReadAt(b, 0)
	s.header = string(b[:n])
	if s.SameBoot() && n >= len(bootID)+1+stampLen {
		s.fresh = b[len(bootID)] == '-'
		s.deleted, _ = strconv.ParseInt(string(b[len(bootID)+1:len(bootID)+1+stampLen]), 10, 64)
	}
	if !s.Fresh() {
		if err := s.makeDirs(); err != nil {
			return nil, errors.Join(err, s.Close())
		}
	}
	return s, nil
}

func (s *Store) makeDirs() error {
	for _, d := range []string{"attachments", "networks", "pools"} {
		if err := os.MkdirAll(filepath.Join(s.dir, d), 0o700); err != nil {
			return fmt.Errorf("state directory: %w", err)
		}
	}
	return nil
}

// flock waits in the kernel's queue, which is fair and costs nothing; the waiting thread is given up with the
// process if patience ends.
func flock(f *os.File, patience time.Duration) error {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return nil
	}
	if !errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("state lock: %w", err)
	}
	done := make(chan error, 1)
	fd := int(f.Fd())
	go func() {
		for {
			if err := unix.Flock(fd, unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
				done <- err
				return
			}
		}
	}()
	select {
	case err := <-done:
		return os.NewSyscallError("flock", err)
	case <-time.After(patience):
		return errs.Unavailable.Errorf("another berth-cni has held %s for %s", f.Name(), patience)
	}
}

// take waits in the queue and then for the lock. On an error it has neither.
func (t *Turn) take(f *os.File, patience time.Duration) error {
	if t.Queue == nil {
		return poll(f, patience, t.Wanted)
	}
	if !t.Queue.enter(patience) {
		return errs.Unavailable.Errorf("an earlier request has held %s for %s", f.Name(), patience)
	}
	err := poll(f, patience, t.Wanted)
	if err != nil {
		t.Queue.leave()
	}
	return err
}

// poll is flock for a process that goes on: no thread may wait for a lock whose descriptor is closed by then, nor for
// somebody who does not want it any more.
func poll(f *os.File, patience time.Duration, wanted func() error) error {
	start, nap := time.Now(), 50*time.Microsecond
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return wanted()
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("state lock: %w", err)
		}
		if time.Since(start) > patience {
			return errs.Unavailable.Errorf("another berth-cni has held %s for %s", f.Name(), patience)
		}
		if err := wanted(); err != nil {
			return err
		}
		time.Sleep(nap)
		nap = min(2*nap, 2*time.Millisecond)
	}
}

// Close lets go of the lock.
func (s *Store) Close() error {
	err := s.lock.Close()
	if s.turn != nil && s.turn.Queue != nil {
		s.turn.Queue.leave()
		s.turn = nil
	}
	return err
}

// Fresh says whether the header is that of this boot and no change was interrupted.
func (s *Store) Fresh() bool { return s.fresh }

// SameBoot says whether the records were made since the machine started.
func (s *Store) SameBoot() bool { return strings.HasPrefix(s.header, s.boot) }

// Begin notes that a change is under way.
func (s *Store) Begin() error { return s.mark("+") }

// End notes that all is consistent again.
func (s *Store) End() error { return s.mark("-") }

// Deleted notes, with the next mark, that nftables elements were deleted at a time in milliseconds since boot.
func (s *Store) Deleted(at int64) { s.deleted = at }

// LastDeleted is the time that Deleted was told last, by whichever process.
func (s *Store) LastDeleted() int64 { return s.deleted }

// stampLen is the width of the time in the header, which is written over and therefore never changes its length.
const stampLen = 16

func (s *Store) mark(m string) error {
	s.fresh = m == "-"
	s.header = fmt.Sprintf("%s%s%0*d\n", s.boot, m, stampLen, s.deleted)
	if _, err := s.lock.WriteAt([]byte(s.header), 0); err != nil {
		return fmt.Errorf("state lock: %w", err)
	}
	return nil
}

// Wipe removes every record and pool: they are of another boot, and nothing they speak of exists.
func (s *Store) Wipe() error {
	for _, d := range []string{"attachments", "networks", "pools", "leases"} {
		if err := os.RemoveAll(filepath.Join(s.dir, d)); err != nil {
			return err
		}
	}
	return s.makeDirs()
}

// Pools is the directory of pool files.
func (s *Store) Pools() string { return filepath.Join(s.dir, "pools") }

// Leases is the directory of what is cached of directories in host-local's format.
func (s *Store) Leases() string { return filepath.Join(s.dir, "leases") }

// Quarantine moves a file of the store aside.
func (s *Store) Quarantine(path string) error {
	dir := filepath.Join(s.dir, "quarantine")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	_, err := atomicfile.Quarantine(path, dir)
	return err
}

func readJSON(path string, v any) error {
	b, err := atomicfile.ReadSealed(path)
	if errors.Is(err, fs.ErrNotExist) {
		return errs.NotFound.Wrap(err)
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s: %w: %w", path, atomicfile.ErrDamaged, err)
	}
	return nil
}

func writeJSON(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return atomicfile.WriteSealed(path, b, 0o600)
}

// Network is what all attachments of a network have in common.
type Network struct {
	Name  string         `json:"name"`
	Pools []netip.Prefix `json:"pools"`
	// Subnets are those whose addresses another IPAM gives out.
	Subnets []netip.Prefix `json:"subnets,omitempty"`
	// Runtime are pools that a runtime asked for, for some attachments.
	Runtime []netip.Prefix `json:"runtime,omitempty"`
	Exclude []netip.Prefix `json:"exclude,omitempty"`
	// Legacy says that its rules are in iptables.
	Legacy bool `json:"legacy,omitempty"`
}

// All are the subnets of the network, whoever gives out their addresses.
func (n Network) All() []netip.Prefix {
	return slices.Concat(n.Pools, n.Runtime, n.Subnets)
}

// Own are the subnets whose addresses we give out.
func (n Network) Own() []netip.Prefix { return slices.Concat(n.Pools, n.Runtime) }

// SaveNetwork records a network and says whether that changed anything. What runtimes asked for adds up.
func (s *Store) SaveNetwork(n Network) (changed bool, err error) {
	path := filepath.Join(s.dir, "networks", n.Name)
	var old Network
	if readJSON(path, &old) == nil {
		for _, p := range n.Runtime {
			if !slices.Contains(old.Runtime, p) {
				old.Runtime, changed = append(old.Runtime, p), true
			}
		}
		n.Runtime = old.Runtime
		if !changed && slices.Equal(old.Pools, n.Pools) && slices.Equal(old.Exclude, n.Exclude) && old.Legacy == n.Legacy {
			return false, nil
		}
	}
	return true, writeJSON(path, n)
}

// AddSubnets records subnets of a network whose addresses another IPAM gives out, and says whether one was new.
func (s *Store) AddSubnets(name string, subnets []netip.Prefix) (changed bool, err error) {
	path := filepath.Join(s.dir, "networks", name)
	var nw Network
	if err := readJSON(path, &nw); err != nil && !errors.Is(err, errs.NotFound) {
		if err := s.Quarantine(path); err != nil {
			return false, err
		}
	}
	for _, p := range subnets {
		if !slices.Contains(nw.Subnets, p) {
			nw.Subnets, changed = append(nw.Subnets, p), true
		}
	}
	if !changed {
		return false, nil
	}
	nw.Name = name
	return true, writeJSON(path, nw)
}

// Networks lists all networks. A damaged record is set aside: the next ADD of its network writes it again.
func (s *Store) Networks() ([]Network, error) {
	dir := filepath.Join(s.dir, "networks")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var out []Network
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		var n Network
		path := filepath.Join(dir, e.Name())
		if err := readJSON(path, &n); err != nil {
			if err := s.Quarantine(path); err != nil {
				return nil, err
			}
			continue
		}
		out = append(out, n)
	}
	return out, nil
}
