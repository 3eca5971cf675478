package crilog

import (
	"bytes"
	"time"
)

// Stream cuts one stream of a container into records. It is for one goroutine at a time.
type Stream struct {
	log     *Log
	name    string
	pending []byte // the start of a line whose end has not come; nil most of the time
}

// Stream makes the stream name ("stdout" or "stderr") of l.
func (l *Log) Stream(name string) *Stream { return &Stream{log: l, name: name} }

// Write takes the next bytes of output. buf is scratch memory: records are formatted in it, and it is returned
// for the next call. All complete lines are in the file when Write returns.
func (s *Stream) Write(p, buf []byte, now time.Time) []byte {
	buf = buf[:0]
	payload := len(s.pending)
	for len(p) > 0 {
		line, rest, full := bytes.Cut(p, []byte{'\n'})
		if !full && len(s.pending)+len(line) < MaxLine {
			s.pending = append(s.pending, line...)
			break
		}
		if room := MaxLine - len(s.pending); len(line) > room || (!full && len(line) == room) {
			buf = s.record(buf, 'P', line[:room], now)
			payload += room
			p = p[room:]
			continue
		}
		buf = s.record(buf, 'F', line, now)
		payload += len(line)
		p = rest
	}
	s.flush(buf, payload)
	return buf
}

func (s *Stream) flush(buf []byte, payload int) {
	if len(buf) > 0 {
		s.log.write(buf, payload, time.Now())
	}
}

// record appends one record of what is pending and tail.
func (s *Stream) record(buf []byte, tag byte, tail []byte, now time.Time) []byte {
	buf = appendTime(buf, now)
	buf = append(buf, ' ')
	buf = append(buf, s.name...)
	buf = append(buf, ' ', tag, ' ')
	buf = append(buf, s.pending...)
	buf = append(buf, tail...)
	s.pending = nil
	if tag == 'F' && buf[len(buf)-1] == '\r' {
		buf = buf[:len(buf)-1]
	}
	return append(buf, '\n')
}

// End writes what is pending, as a part of a line.
func (s *Stream) End(now time.Time) {
	if n := len(s.pending); n > 0 {
		s.flush(s.record(nil, 'P', nil, now), n)
	}
}

// Pending is how many bytes wait for the end of their line.
func (s *Stream) Pending() int { return len(s.pending) }

// appendTime appends the fixed-width time of a record.
func appendTime(b []byte, t time.Time) []byte {
	return t.UTC().AppendFormat(b, "2006-01-02T15:04:05.000000000Z07:00")
}
