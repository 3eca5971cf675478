package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/berth-project/berth/cni/internal/fabric"
)

// lookAnyway is how often the file is read without a notification: file systems that are not local send none.
const lookAnyway = 30 * time.Second

// settle is how long a file that changes is left alone: an editor that writes in place is then done.
const settle = 20 * time.Millisecond

// File is a fabric file as a source. Its directory is watched, so that a file that is replaced by rename, or a link
// that is turned to another, is seen.
type File struct{ Path string }

// Name is the file's path.
func (f File) Name() string { return f.Path }

// Run implements [Source].
func (f File) Run(ctx context.Context, deliver func(Delivery)) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch %s: %w", f.Path, err)
	}
	defer w.Close() //nolint:errcheck // nothing is written
	if err := w.Add(filepath.Dir(f.Path)); err != nil {
		return fmt.Errorf("watch the directory of %s: %w", f.Path, err)
	}
	var last []byte
	lastErr := ""
	look := func() {
		b, err := os.ReadFile(f.Path)
		text := ""
		if err != nil {
			text = err.Error()
		}
		if lastErr == text && err != nil || err == nil && last != nil && bytes.Equal(b, last) {
			return
		}
		last, lastErr = b, text
		deliver(parse(f.Path, b, err))
	}
	look()
	timer := time.NewTimer(lookAnyway)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-w.Events:
			if !ok {
				return errors.New("the watch ended")
			}
			timer.Reset(settle)
		case err := <-w.Errors: // an overflow: look
			if err != nil {
				timer.Reset(settle)
			}
		case <-timer.C:
			look()
			timer.Reset(lookAnyway)
		}
	}
}

func parse(path string, b []byte, err error) Delivery {
	if err != nil {
		return Delivery{Err: err}
	}
	fab, err := fabric.Parse(b)
	if err != nil {
		return Delivery{Err: fmt.Errorf("%s: %w", path, err)}
	}
	return Delivery{Fabric: fab}
}
