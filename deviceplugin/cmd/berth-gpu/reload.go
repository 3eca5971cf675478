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

// reloader reads the configuration again on SIGHUP, when its file changes, and when the node's label names another
// override. A bad file is named in the log and changes nothing. A label that names no override of the file leaves the
// one that holds, and is tried again at every reload: label and file come in any order. What takes effect at once:
// log_level, mig_strategy, resources and the override; the rest at a restart, which no container notices.
type reloader struct {
	o     options
	level *slog.LevelVar
	log   *slog.Logger
	node  *node.Node
	// keep writes down a label that was taken; nil where none is watched.
	keep func(label string) error

	mu       sync.Mutex // one at a time, whoever asks
	label    string     // that is wanted, "" where there is none
	news     bool       // it is not written down
	override string     // that holds
}

// choose takes the override that the node's label names, "" where it is not there: then the flag's holds.
func (r *reloader) choose(label string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.label, r.news = label, true
	if r.wanted() != r.override {
		r.reload()
		return
	}
	r.settled()
}

// wanted is the override that should hold.
func (r *reloader) wanted() string { return or(r.label, r.o.override) }

// settled writes the label down once it holds.
func (r *reloader) settled() {
	if r.keep == nil || !r.news || r.override != r.wanted() {
		return
	}
	if err := r.keep(r.label); err != nil {
		r.log.Error("the override cannot be kept: a restart without an API server would not know it", "error", err)
		return
	}
	r.news = false
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

// reload reads the file and takes what is wanted of it. The caller holds mu.
func (r *reloader) reload() {
	if err := r.take(); err != nil {
		r.log.Error("configuration refused, the old one stays", "error", err)
		return
	}
	r.log.Info("configuration reloaded", "file", r.o.config, "override", r.override)
	r.settled()
}

func (r *reloader) take() error {
	conf, err := load(r.o.config)
	if err != nil {
		return err
	}
	name := r.wanted()
	offer, err := conf.Offer(name)
	if err != nil && name != r.override {
		r.log.Error("the node's label is not taken", "label", conf.Cluster.OverrideLabel, "stays", r.override, "error", err)
		name = r.override
		offer, err = conf.Offer(name)
	}
	if err != nil {
		return err
	}
	if err := r.level.UnmarshalText([]byte(conf.LogLevel)); err != nil {
		return err
	}
	r.node.SetPolicy(offer)
	r.override = name
	return nil
}
