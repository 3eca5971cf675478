package registry

import (
	"context"
	"fmt"
	"io"
	"time"
)

// watch ends a body that stalls or trickles. It counts only the time spent waiting for the peer, so a slow disk
// behind a blob is not the registry's fault.
type watch struct {
	ctx     context.Context //nolint:containedctx // of the stream it watches
	stall   time.Duration
	minRate int64
	abort   func() // unblocks a read; set by the owner

	timer  *time.Timer
	waited time.Duration // in reads since bytes was reset
	bytes  int64
}

func newWatch(ctx context.Context, cfg *Config) *watch {
	return &watch{ctx: ctx, stall: cfg.Stall, minRate: cfg.MinRate}
}

// read is r.Read(p) under watch. An error names the rule that was broken.
func (w *watch) read(r io.Reader, p []byte) (int, error) {
	if w.timer == nil {
		w.timer = time.AfterFunc(w.stall, w.abort)
	} else {
		w.timer.Reset(w.stall)
	}
	start := time.Now()
	n, err := r.Read(p)
	fired := !w.timer.Stop()
	w.waited += time.Since(start)
	w.bytes += int64(n)
	switch {
	case fired && err != nil && w.ctx.Err() == nil:
		err = fmt.Errorf("nothing came for %v", w.stall)
	case err == nil && w.waited >= w.stall:
		if rate := float64(w.bytes) / w.waited.Seconds(); rate < float64(w.minRate) {
			err = fmt.Errorf("slower than %d bytes/s for %v", w.minRate, w.waited.Round(time.Millisecond))
		}
		w.waited, w.bytes = 0, 0
	}
	return n, err
}

func (w *watch) stop() {
	if w.timer != nil {
		w.timer.Stop()
	}
}
