package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/fsnotify/fsnotify"

	"github.com/berth-project/berth/deviceplugin/internal/node"
)

// reloader reads the configuration again on SIGHUP and when its file changes. A bad file is named in the log and
// changes nothing. So it does when the node's label names another override. What takes effect at once: log_level, mig_strategy, resources and the override; the rest at a
// restart, which no container notices.
type reloader struct {
	o     options
	level *slog.LevelVar
	log   *slog.Logger
	node  *node.Node

	mu       sync.Mutex // one at a time, whoever asks
	override string     // that holds
}

// choose takes another override: the label's, or where there is none the flag's. It returns false, and changes
// nothing, where the configuration has none of that name.
func (r *reloader) choose(label string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.override
	r.override = or(label, r.o.override)
	if r.override == old {
		return true
	}
	if !r.reload() {
		r.override = old
		return false
	}
	r.log.Info("override", "name", r.override)
	return true
}

// current is the override that holds.
func (r *reloader) current() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.override
}

func (r *reloader) again() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reload()
}

func (r *reloader) run(ctx context.Context) error {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	var events chan fsnotify.Event
	if r.o.config != "" {
		w, err := fsnotify.NewWatcher()
		if err != nil {
			return err
		}
		defer w.Close() //nolint:errcheck // nothing to lose
		// editors and config maps replace the file, so its directory is watched; a config map replaces a link in it
		if err := w.Add(filepath.Dir(r.o.config)); err != nil {
			return err
		}
		events = w.Events
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hup:
			r.again()
		case e := <-events:
			name := filepath.Base(e.Name)
			if (name == filepath.Base(r.o.config) || name == "..data") && !e.Has(fsnotify.Remove) && !e.Has(fsnotify.Chmod) {
				r.again()
			}
		}
	}
}

func (r *reloader) reload() bool {
	conf, err := load(r.o.config)
	if err != nil {
		r.log.Error("configuration refused, the old one stays", "error", err)
		return false
	}
	offer, err := conf.Offer(r.override)
	if err != nil {
		r.log.Error("configuration refused, the old one stays", "error", err)
		return false
	}
	if err := r.level.UnmarshalText([]byte(conf.LogLevel)); err != nil {
		r.log.Error("configuration refused, the old one stays", "error", err)
		return false
	}
	r.node.SetPolicy(offer)
	r.log.Info("configuration reloaded", "file", r.o.config)
	return true
}
