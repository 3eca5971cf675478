package crilog

import (
	"bytes"
	"time"
)

// Stream cuts one stream of a container into records. It is for one goroutine at a time.
type Stream struct {
	log  *Log
	name string
	slot *slot  // nil without a journal
	held []byte // the start of a line whose end has not come, if it is not in the slot; nil most of the time
}

// Stream makes the stream name ("stdout" or "stderr") of l. With a journal, what an earlier shim had begun is
// finished first.
func (l *Log) Stream(name string) *Stream {
	s := &Stream{log: l, name: name}
	if l.journal != nil {
		index := 0
		if name == "stderr" {
			index = 1
		}
		s.slot = l.journal.slot(index)
		s.recover()
	}
	return s
}

// Buffer is where the next want bytes (at most ChunkSize) are to be read to, and then given to Write; nil if there is
// no journal or no room in it: any other memory will do.
func (s *Stream) Buffer(want int) []byte {
	if s.slot == nil {
		return nil
	}
	return s.slot.begin(want)
}

// Cancel takes back a Buffer that nothing was read to.
func (s *Stream) Cancel() {
	if s.slot.ready() {
		s.slot.set(phaseIdle, s.slot.turn())
	}
}

// Rest says that nothing more is to be read for now.
func (s *Stream) Rest() {
	if s.slot.ready() {
		s.slot.rest()
	}
}

// Write takes the next bytes of output. buf is scratch memory: records are formatted in it, and it is returned
// for the next call. All complete lines are in the file when Write returns.
func (s *Stream) Write(p, buf []byte, now time.Time) []byte {
	records, keep, tail, payload := s.cut(buf[:0], p, now)
	var begin func(off int64, ino uint64)
	if s.slot.ready() && s.slot.phase() != phaseIdle { // p lies in the journal
		begin = func(off int64, ino uint64) { s.slot.writing(len(p), off, ino, now) }
	}
	if len(records) > 0 {
		s.log.write(records, payload, now, begin)
	}
	if s.slot.ready() {
		s.slot.commit(keep, tail)
		s.held = nil
	} else {
		s.hold(keep, tail)
	}
	return records
}

func (s *Stream) hold(keep, tail []byte) {
	if len(keep)+len(tail) == 0 {
		s.held = nil
		return
	}
	s.held = append(append(make([]byte, 0, len(keep)+len(tail)), keep...), tail...)
}

func (s *Stream) pending() []byte {
	if s.held == nil && s.slot.ready() {
		return s.slot.pending()
	}
	return s.held
}

// cut appends to records what pending and p make complete, payload bytes of output, and returns what stays pending:
// the concatenation of keep and tail.
func (s *Stream) cut(records, p []byte, now time.Time) (_, keep, tail []byte, payload int) {
	pending := s.pending()
	for len(p) > 0 {
		line, rest, full := bytes.Cut(p, []byte{'\n'})
		if !full && len(pending)+len(line) < MaxLine {
			return records, pending, line, payload
		}
		if room := MaxLine - len(pending); len(line) > room || (!full && len(line) == room) {
			records = s.record(records, 'P', pending, line[:room], now)
			payload += len(pending) + room
			pending, p = nil, p[room:]
			continue
		}
		records = s.record(records, 'F', pending, line, now)
		payload += len(pending) + len(line)
		pending, p = nil, rest
	}
	return records, pending, nil, payload
}

// record appends one record of pending and tail.
func (s *Stream) record(buf []byte, tag byte, pending, tail []byte, now time.Time) []byte {
	buf = appendTime(buf, now)
	buf = append(buf, ' ')
	buf = append(buf, s.name...)
	buf = append(buf, ' ', tag, ' ')
	buf = append(buf, pending...)
	buf = append(buf, tail...)
	if tag == 'F' && buf[len(buf)-1] == '\r' {
		buf = buf[:len(buf)-1]
	}
	return append(buf, '\n')
}

// End writes what is pending, as a part of a line, and says what is missing before it.
func (s *Stream) End(now time.Time) {
	pending := s.pending()
	if len(pending) > 0 {
		s.log.write(s.record(nil, 'P', pending, nil, now), len(pending), now, nil)
	}
	if s.slot.ready() {
		s.slot.commit(nil, nil)
		s.slot.rest()
	}
	s.held = nil
	s.log.settle(now)
}

// Pending is how many bytes wait for the end of their line.
func (s *Stream) Pending() int { return len(s.pending()) }

// appendTime appends the fixed-width time of a record.
func appendTime(b []byte, t time.Time) []byte {
	return t.UTC().AppendFormat(b, "2006-01-02T15:04:05.000000000Z07:00")
}
