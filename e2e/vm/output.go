package vm

import (
	"io"
	"os"
	"strings"
	"time"
)

// follow copies a file that grows, until done.
func follow(file string, to io.Writer, done <-chan struct{}) {
	var f *os.File
	for last := false; ; {
		if f == nil {
			f, _ = os.Open(file)
		}
		if f != nil {
			_, _ = io.Copy(to, f)
		}
		if last {
			if f != nil {
				_ = f.Close()
			}
			return
		}
		select {
		case <-done:
			last = true
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// breaker passes the guest's output on and cuts its power, once, when a word comes.
type breaker struct {
	to      io.Writer // may be nil
	word    string    // "": never
	cut     func() error
	seen    string // of what has come, as much as may be the word's beginning
	tripped bool
}

// Write implements io.Writer.
func (b *breaker) Write(p []byte) (int, error) {
	if b.word != "" && !b.tripped {
		b.seen += string(p)
		if strings.Contains(b.seen, b.word) {
			b.tripped = true
			if err := b.cut(); err != nil {
				return 0, err
			}
		}
		b.seen = b.seen[max(0, len(b.seen)-len(b.word)):]
	}
	if b.to == nil {
		return len(p), nil
	}
	return b.to.Write(p)
}
