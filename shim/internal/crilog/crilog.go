// Package crilog writes container output in the CRI log format and cuts it into lines:
//
//	2026-11-22T10:00:00.000000000Z stdout F text
//
// The time is RFC 3339 with nine digits of fraction, in UTC. The tag is F for a full line and P for a part of one:
// a line longer than MaxLine is cut into parts, and what a stream ends with without a newline is a part. A carriage
// return before the newline is dropped. All this is as containerd does it; the kubelet reads it.
//
// When the file can not be written (a full disk) the container is not stopped and not held up: what does not fit
// is dropped and counted, and a line says so as soon as the file takes one again. The same holds for a file that could not
// be opened when a shim took a running container over.
package crilog

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/internal/inroot"
)

// reopenEvery is how long a log whose file cannot be opened waits between two tries, which it makes when something is
// written.
const reopenEvery = time.Second

// MaxLine is the most bytes of output in one record.
const MaxLine = 16 << 10

// Log is the log file of one container, for all its streams. Its methods are safe from several goroutines. The
// zero Log, and a nil one, drops everything.
type Log struct {
	dir, name string
	journal   *Journal // nil without one

	mu      sync.Mutex // held over a write, so that Reopen knows which file a record went to
	file    *os.File
	torn    bool // the file ends within a record
	dropped int64
	cause   error
	again   time.Time // when to try again to open a file that could not be opened
	closed  bool
}

// Open opens (or makes) the log file name, which is resolved beneath dir without following links. journal, if not
// nil, is the log's from then on. On an error the Log is one for what runs already: it drops and counts what is written until
// the file can be opened, which it tries itself; Close it if it is not wanted.
func Open(dir, name string, journal *Journal) (*Log, error) {
	l := &Log{dir: dir, name: name, journal: journal}
	if name == "" {
		return l, nil
	}
	var err error
	l.file, err = l.open()
	l.cause = err
	return l, err
}

// late opens the file of a log that has none yet, if it is time to try, and tells whether there is one. l.mu is held.
func (l *Log) late(now time.Time) bool {
	if l.file != nil {
		return true
	}
	if l.name == "" || l.closed || now.Before(l.again) {
		return false
	}
	f, err := l.open()
	if err != nil {
		l.cause, l.again = err, now.Add(reopenEvery)
		return false
	}
	l.file = f
	return true
}

// settle says what is missing at the end of a stream, if something is and the file takes it.
func (l *Log) settle(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.again = (time.Time{}); l.dropped > 0 && l.late(now) {
		l.confess(now)
	}
}

func (l *Log) open() (*os.File, error) {
	root, err := inroot.Open(l.dir)
	if err != nil {
		return nil, fmt.Errorf("log directory: %w", err)
	}
	defer root.Close() //nolint:errcheck // O_PATH
	f, err := root.Beneath(l.name, unix.O_RDWR|unix.O_APPEND|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY, 0o640)
	if err != nil {
		return nil, fmt.Errorf("log file: %w", err)
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fmt.Errorf("log file %s/%s is not a regular file", l.dir, l.name)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// Reopen makes the file anew, after the kubelet has moved the old one away. When it returns the new file is there
// and nothing will be added to the old one.
func (l *Log) Reopen() error {
	if l == nil || l.name == "" {
		return nil
	}
	f, err := l.open()
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	old := l.file
	l.file, l.torn = f, false
	if old != nil {
		return old.Close()
	}
	return nil
}

// Close closes the file and the journal. All streams must have ended.
func (l *Log) Close() error {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dropped > 0 && l.file != nil { // a file that is not open may have been removed with its directory: none is made
		l.confess(time.Now())
	}
	var err error
	l.closed = true
	if l.journal != nil {
		err = l.journal.Close()
		l.journal = nil
	}
	if l.file != nil {
		err = errors.Join(err, l.file.Close())
		l.file = nil
	}
	return err
}

// write appends whole records, which hold payload bytes of output. begin, if not nil, is told where they will be,
// before.
func (l *Log) write(records []byte, payload int, now time.Time, begin func(off int64, ino uint64)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.name == "" || l.closed {
		return
	}
	if !l.late(now) {
		l.dropped += int64(payload)
		return
	}
	if begin != nil {
		var st unix.Stat_t
		if unix.Fstat(int(l.file.Fd()), &st) == nil {
			begin(st.Size, st.Ino)
		}
	}
	if l.dropped > 0 && !l.confess(now) {
		l.dropped += int64(payload)
		return
	}
	n, err := l.file.Write(records)
	if err == nil {
		return
	}
	whole := bytes.LastIndexByte(records[:n], '\n') + 1
	l.torn = whole < n
	l.dropped += int64(payload - payload*whole/max(len(records), 1))
	l.cause = err
}

// has tells whether records are at off of the log file, which must be the one with inode ino. The beginning of
// them, at the end of the file, is removed.
func (l *Log) has(records []byte, off int64, ino uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	var st unix.Stat_t
	if l.file == nil || unix.Fstat(int(l.file.Fd()), &st) != nil || st.Ino != ino || st.Size <= off {
		return false
	}
	b := make([]byte, len(records))
	n, _ := l.file.ReadAt(b, off) //nolint:errcheck // what could be read is compared
	if n == len(records) {
		return bytes.Equal(b, records)
	}
	if bytes.HasPrefix(records, b[:n]) {
		_ = l.file.Truncate(off)
	}
	return false
}

// confess writes the line about what was dropped, and tells whether that worked.
func (l *Log) confess(now time.Time) bool {
	var b []byte
	if l.torn {
		b = append(b, '\n')
	}
	b = appendTime(b, now)
	b = fmt.Appendf(b, " stderr F [berth: about %d bytes of output are missing here: %v]\n", l.dropped, l.cause)
	n, err := l.file.Write(b)
	if err != nil {
		l.torn = l.torn || n > 0
		return false
	}
	l.dropped, l.torn, l.cause = 0, false, nil
	return true
}

// Dropped is how many bytes of output were lost and not yet confessed.
func (l *Log) Dropped() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.dropped
}
