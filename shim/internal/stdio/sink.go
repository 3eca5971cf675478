package stdio

import (
	"bytes"
	"os"
	"sync"
	"time"
)

const (
	// sinkChunks bounds what waits for a slow reader: 16 chunks of at most 32 KiB.
	sinkChunks = 16
	// sinkPatience is how long a full queue may hold up a container's output before the reader is dropped.
	sinkPatience = 500 * time.Millisecond
	// sinkLinger is how long a reader may take for the rest after the stream's end.
	sinkLinger = 10 * time.Second
)

// sink is an attached reader: a bounded queue and a goroutine that writes it to a descriptor.
type sink struct {
	file  *os.File // pollable, so that a deadline and Close end a write
	queue chan []byte
	once  sync.Once
	dead  chan struct{}
}

// newSink takes file and starts its goroutine; wg waits for that.
func newSink(file *os.File, wg *sync.WaitGroup) *sink {
	s := &sink{file: file, queue: make(chan []byte, sinkChunks), dead: make(chan struct{})}
	wg.Go(s.run)
	return s
}

func (s *sink) run() {
	defer s.file.Close() //nolint:errcheck // a pipe or a socket
	for b := range s.queue {
		if _, err := s.file.Write(b); err != nil {
			s.kill()
			return
		}
	}
}

func (s *sink) kill() { s.once.Do(func() { close(s.dead) }) }

// put queues data. It returns false when the reader is gone or too slow.
func (s *sink) put(data []byte) bool {
	b := bytes.Clone(data)
	select {
	case s.queue <- b:
		return true
	case <-s.dead:
		close(s.queue)
		return false
	default:
	}
	t := time.NewTimer(sinkPatience)
	defer t.Stop()
	select {
	case s.queue <- b:
		return true
	case <-s.dead:
	case <-t.C:
		_ = s.file.Close()
	}
	close(s.queue)
	return false
}

// finish lets the reader have what is queued, for a while.
func (s *sink) finish() {
	_ = s.file.SetWriteDeadline(time.Now().Add(sinkLinger))
	close(s.queue)
}
