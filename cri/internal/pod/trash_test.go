package pod

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestCloseEnds: work that hangs does not hold the daemon's end up, and the log says that it is left.
func TestCloseEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		m := New(Config{Log: slog.New(slog.NewTextHandler(&log, nil))}, nil, nil, nil)
		hung := make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, _ = m.join(ctx, "k", time.Minute, func(context.Context) (string, error) {
			<-hung
			return "", nil
		})
		start := time.Now()
		m.Close()
		if took := time.Since(start); took != closeGrace+closeLimit {
			t.Errorf("it took %v", took)
		}
		if !strings.Contains(log.String(), "left to the next start") {
			t.Errorf("the log says %q", log.String())
		}
		close(hung)
	})
}

// TestTrash: what is thrown away is gone at once from where it was, soon from the disk, and what an earlier daemon has left too.
func TestTrash(t *testing.T) {
	m := New(Config{Root: t.TempDir(), Log: slog.New(slog.NewTextHandler(t.Output(), nil))}, nil, nil, nil)
	for _, dir := range []string{"layer/upper", "trash/earlier/upper"} {
		if err := os.MkdirAll(filepath.Join(m.cfg.Root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // the second finds nothing
		if err := m.trash(filepath.Join(m.cfg.Root, "layer")); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(m.cfg.Root, "layer")); err == nil {
			t.Error("what was thrown away is there")
		}
	}
	m.emptyTrash()
	m.Close() // waits
	if left, err := os.ReadDir(m.trashDir()); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
