package bgpd

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/berth-project/berth/cni/internal/bgp/channel"
)

// tick is how often what no event tells is looked at: counters, and peers that are silently synced.
const tick = time.Second

// gather is how long changes are let come together before they are looked up and reported.
const gather = 5 * time.Millisecond

// daemon joins the speaker, its watcher and the channel.
type daemon struct {
	conn    io.ReadWriter
	speaker *speaker
	watcher *watcher

	mu sync.Mutex // guards writes to conn
}

// Run speaks BGP as it is told over conn, until told to stop, or conn ends, or ctx does. In the last two cases the
// agent is gone or was killed, and what it wanted of peers is what a restart wants: they keep our routes.
func Run(ctx context.Context, conn io.ReadWriter, program string, log *slog.Logger) error {
	d := &daemon{conn: conn, watcher: newWatcher()}
	d.speaker = newSpeaker(log, d.watcher.watch)
	if err := d.write(channel.ToParent{Hello: &channel.Hello{Version: channel.Version, Program: program}}); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	orders, failed := make(chan channel.ToChild), make(chan error, 1)
	go read(ctx, conn, orders, failed)

	ticks := time.NewTicker(tick)
	defer ticks.Stop()
	var restart <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return d.speaker.stop(true)
		case err := <-failed:
			if !errors.Is(err, io.EOF) {
				return errors.Join(err, d.speaker.stop(true))
			}
			return d.speaker.stop(true)
		case o := <-orders:
			if o.Stop != nil {
				return d.speaker.stop(o.Stop.Graceful)
			}
			if o.Set == nil {
				continue
			}
			after, err := d.set(ctx, o.Set)
			if err != nil {
				return err
			}
			if after != nil {
				restart = after
			}
		case <-restart:
			restart = nil
			if err := d.speaker.endRestart(ctx, d.watcher.isUp); err != nil {
				d.speaker.log.Warn("after the restart time", "error", err)
			}
		case <-d.watcher.wake:
			time.Sleep(gather)
			if err := d.report(ctx); err != nil {
				return err
			}
		case <-ticks.C:
			d.watcher.age(time.Now())
			if err := d.reportPeers(ctx); err != nil {
				return err
			}
		}
	}
}

func read(ctx context.Context, r io.Reader, orders chan<- channel.ToChild, failed chan<- error) {
	for {
		var o channel.ToChild
		if err := channel.Read(r, &o, channel.MaxToChild); err != nil {
			failed <- err
			return
		}
		select {
		case orders <- o:
		case <-ctx.Done():
			return
		}
	}
}

// set carries out one order. If it is the first after a restart, the channel fires when that is over.
func (d *daemon) set(ctx context.Context, o *channel.Set) (<-chan time.Time, error) {
	first := d.speaker.server == nil
	c := o.Whole()
	err := d.speaker.set(ctx, c, o.Restarting && first)
	answer := &channel.Applied{ID: o.ID}
	if err != nil {
		answer.Error = err.Error()
	}
	if err := d.write(channel.ToParent{Applied: answer}); err != nil {
		return nil, err
	}
	if first && o.Restarting && c.Restart.Enabled() {
		return time.After(c.Restart.Time), nil
	}
	return nil, nil
}

// report says what routes changed, and after all of them who is synced.
func (d *daemon) report(ctx context.Context) error {
	if d.speaker.server == nil {
		return nil
	}
	dirty, synced, states := d.watcher.take()
	if len(dirty) > 0 {
		r, err := routes(d.speaker.server, dirty, d.speaker.now)
		if err != nil {
			return err
		}
		if err := d.write(channel.ToParent{Routes: r}); err != nil {
			return err
		}
	}
	if len(synced) > 0 {
		if err := d.write(channel.ToParent{Synced: &channel.Synced{Peers: synced}}); err != nil {
			return err
		}
	}
	if states {
		return d.reportPeers(ctx)
	}
	return nil
}

func (d *daemon) reportPeers(ctx context.Context) error {
	if d.speaker.server == nil {
		return nil
	}
	p, err := d.status(ctx)
	if err != nil {
		return err
	}
	return d.write(channel.ToParent{Peers: p})
}

func (d *daemon) write(m channel.ToParent) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return channel.Write(d.conn, m, channel.MaxToParent)
}

func (w *watcher) isUp(a netip.Addr) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.peers[a]
	return p != nil && p.established
}
