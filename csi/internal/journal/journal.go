// Package journal keeps small records that must survive a killed process and a power cut: one append-only file of
// checksummed lines, synced in groups.
//
// A Put that is durable returns after fdatasync(2) of its line; callers that wait at the same time share one. A Put
// that is not survives SIGKILL (the page cache does) but maybe not a power cut, and is made durable by any later
// durable one, because the order of lines is the order of Puts. At Open the file is read, rewritten with the live
// records alone, and synced. A torn last line is what a power cut leaves and is dropped; a line damaged elsewhere
// loses that one record's last change: the whole file is kept aside and the damage is reported.
//
// A failed fdatasync means that nobody knows what is on the disk: from then on every durable Put fails until the
// program starts anew (the kernel forgets the error after telling it once, see fsync(2), "fsyncgate").
//
// The package knows nothing of what the records mean.
package journal

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/internal/atomicfile"
	"github.com/berth-project/berth/internal/failpoint"
	"github.com/berth-project/berth/proto/errs"
)

const (
	fileName   = "journal"
	magic      = "berth-journal-1\n"
	ahead      = 1 << 20 // bytes allocated beyond the end, so that deletes work on a full disk
	rewriteMin = 4 << 20 // a file smaller than this is never rewritten while running
)

var (
	beforeSync = failpoint.New("csi.journal.before_sync")
	afterSync  = failpoint.New("csi.journal.after_sync")
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Journal is an open journal. Use [Open].
type Journal struct {
	dir  string
	lock *os.File // locked as long as it is open

	mu      sync.Mutex
	cond    *sync.Cond
	file    *os.File
	size    int64 // bytes that hold lines
	room    int64 // bytes allocated
	live    map[string][]byte
	bytes   int64 // of live records, about
	written uint64
	synced  uint64
	syncing bool
	broken  error
}

// line is what one line holds; a nil value deletes the key.
type line struct {
	Key   string          `json:"k"`
	Value json.RawMessage `json:"v,omitempty"`
}

// Open reads the journal in dir, which is made with mode 0700, and locks it: a second process gets FailedPrecondition.
// damaged says what was lost, if anything was; the file as it was found is then in dir/damaged.
func Open(dir string) (j *Journal, damaged []string, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, err
	}
	j = &Journal{dir: dir, live: map[string][]byte{}}
	j.cond = sync.NewCond(&j.mu)
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, nil, errors.Join(errs.FailedPrecondition.Errorf("%s is in use by another berth-csi: stop it first", dir), lock.Close())
	}
	path := filepath.Join(dir, fileName)
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, nil, errors.Join(err, lock.Close())
	}
	if err == nil {
		if damaged = j.read(b); len(damaged) > 0 {
			if _, err := atomicfile.Quarantine(path, filepath.Join(dir, "damaged")); err != nil {
				return nil, nil, errors.Join(err, lock.Close())
			}
		}
	}
	if err := j.rewrite(); err != nil {
		return nil, nil, errors.Join(err, lock.Close())
	}
	j.lock = lock
	return j, damaged, nil
}

// read fills live from a file's content.
func (j *Journal) read(b []byte) (damaged []string) {
	body, ok := bytes.CutPrefix(b, []byte(magic))
	if !ok {
		if len(b) > 0 {
			damaged = append(damaged, "the journal does not start with its format's name: it is read as far as it makes sense")
		}
	}
	for n := 1; len(body) > 0; n++ {
		raw, rest, whole := bytes.Cut(body, []byte("\n"))
		body = rest
		l, err := parse(raw)
		if err != nil {
			if !whole {
				return damaged // torn by a power cut: the Put had not returned
			}
			damaged = append(damaged, fmt.Sprintf("journal line %d: %v", n, err))
			continue
		}
		j.keep(l)
	}
	return damaged
}

func (j *Journal) keep(l line) {
	if old, ok := j.live[l.Key]; ok {
		j.bytes -= int64(len(old) + len(l.Key))
	}
	if l.Value == nil {
		delete(j.live, l.Key)
		return
	}
	j.live[l.Key] = l.Value
	j.bytes += int64(len(l.Value) + len(l.Key))
}

// A line is the CRC-32C of its JSON in eight hexadecimal digits, a space, the JSON.
func parse(raw []byte) (l line, err error) {
	sum, text, ok := bytes.Cut(raw, []byte(" "))
	if !ok {
		return l, errors.New("no checksum")
	}
	want, err := strconv.ParseUint(string(sum), 16, 32)
	if err != nil || uint32(want) != crc32.Checksum(text, castagnoli) {
		return l, errors.New("the checksum does not fit")
	}
	return l, json.Unmarshal(text, &l)
}

func format(l line) ([]byte, error) {
	text, err := json.Marshal(l)
	if err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, "%08x %s\n", crc32.Checksum(text, castagnoli), text), nil
}

// rewrite makes a new file of the live records and takes it into use; mu is held, or nobody else knows j.
func (j *Journal) rewrite() error {
	var b bytes.Buffer
	b.WriteString(magic)
	for k, v := range j.live {
		text, err := format(line{Key: k, Value: v})
		if err != nil {
			return err
		}
		b.Write(text)
	}
	path := filepath.Join(j.dir, fileName)
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	_, werr := f.Write(b.Bytes())
	if err := errors.Join(werr, f.Sync(), os.Rename(path+".new", path), syncDir(j.dir)); err != nil {
		return errors.Join(err, f.Close())
	}
	if j.file != nil {
		err = j.file.Close()
	}
	j.file, j.size, j.room, j.synced = f, int64(b.Len()), int64(b.Len()), j.written
	return err
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Put makes value, which is marshalled as JSON, the record of key. See the package comment for durable.
func (j *Journal) Put(key string, value any, durable bool) error {
	b, err := json.Marshal(value)
	if err != nil {
		return err
	}
	return j.append(line{Key: key, Value: b}, durable)
}

// Delete removes a record; one that is not there is fine.
func (j *Journal) Delete(key string, durable bool) error {
	j.mu.Lock()
	_, there := j.live[key]
	j.mu.Unlock()
	if !there {
		return nil
	}
	return j.append(line{Key: key}, durable)
}

func (j *Journal) append(l line, durable bool) error {
	text, err := format(l)
	if err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.broken != nil {
		return errs.Unavailable.Errorf("the journal %s cannot be trusted since an earlier failure; restart berth-csi when the disk is well: %w", j.dir, j.broken)
	}
	if err := j.write(text); err != nil {
		return err
	}
	j.keep(l)
	j.written++
	if !durable {
		return nil
	}
	return j.await(j.written)
}

// write puts text at the end. A short write is undone, so that the next one does not follow half a line.
func (j *Journal) write(text []byte) error {
	if need := j.size + int64(len(text)); need > j.room-ahead/2 {
		// Keeping the size: a file system without room or without fallocate(2) says so in the write itself.
		if unix.Fallocate(int(j.file.Fd()), unix.FALLOC_FL_KEEP_SIZE, j.size, ahead) == nil {
			j.room = j.size + ahead
		}
	}
	if _, err := j.file.WriteAt(text, j.size); err != nil {
		class := errs.Internal
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
			class = errs.ResourceExhausted
		}
		return errors.Join(class.Errorf("journal %s: %w", j.dir, err), j.file.Truncate(j.size))
	}
	j.size += int64(len(text))
	return nil
}

// await returns when line n is on the disk. The first that waits syncs for all that wait with it.
func (j *Journal) await(n uint64) error {
	for j.synced < n && j.broken == nil {
		if j.syncing {
			j.cond.Wait()
			continue
		}
		j.syncing = true
		upTo, f := j.written, j.file
		j.mu.Unlock()
		err := errors.Join(beforeSync.Hit(), unix.Fdatasync(int(f.Fd())), afterSync.Hit())
		j.mu.Lock()
		j.syncing = false
		if err != nil {
			j.broken = err
		} else {
			j.synced = max(j.synced, upTo)
			j.shrink()
		}
		j.cond.Broadcast()
	}
	if j.synced < n {
		return errs.Unavailable.Errorf("journal %s: nobody knows what is on the disk; restart berth-csi when it is well: %w", j.dir, j.broken)
	}
	return nil
}

// shrink rewrites a file that is mostly history.
func (j *Journal) shrink() {
	if j.size < rewriteMin || j.size < 4*j.bytes {
		return
	}
	if err := j.rewrite(); err != nil {
		j.broken = err
	}
}

// Each calls visit with every live record whose key starts with prefix, without the prefix, in no order. visit must
// not call the journal.
func (j *Journal) Each(prefix string, visit func(key string, value []byte) error) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	for k, v := range j.live {
		if len(k) >= len(prefix) && k[:len(prefix)] == prefix {
			if err := visit(k[len(prefix):], v); err != nil {
				return err
			}
		}
	}
	return nil
}

// Get is one record, nil if there is none.
func (j *Journal) Get(key string) []byte {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.live[key]
}

// Close syncs and closes the file and gives up the lock.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return errors.Join(unix.Fdatasync(int(j.file.Fd())), j.file.Close(), j.lock.Close())
}
