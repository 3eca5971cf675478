package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/fsnotify/fsnotify"

	"github.com/berth-project/berth/cri/internal/config"
)

// reloader reads the configuration again on SIGHUP and when its file changes. A bad file is named in the log and
// changes nothing. What takes effect at once: log_level, image.pinned, image.hosts_dir; the rest at a restart,
// which no container notices.
type reloader struct {
	path  string
	level *slog.LevelVar
	log   *slog.Logger
	apply func(config.Config)
}

func (r *reloader) run(ctx context.Context) error {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	var events chan fsnotify.Event
	if r.path != "" {
		w, err := fsnotify.NewWatcher()
		if err != nil {
			return err
		}
		defer w.Close() //nolint:errcheck // nothing to lose
		// editors and config maps replace the file, so its directory is watched
		if err := w.Add(filepath.Dir(r.path)); err != nil {
			return err
		}
		events = w.Events
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hup:
			r.reload()
		case e := <-events:
			if filepath.Clean(e.Name) == filepath.Clean(r.path) && !e.Has(fsnotify.Remove) && !e.Has(fsnotify.Chmod) {
				r.reload()
			}
		}
	}
}

func (r *reloader) reload() {
	conf, err := load(r.path)
	if err != nil {
		r.log.Error("configuration refused, the old one stays", "error", err)
		return
	}
	setLevel(r.level, conf.LogLevel)
	r.apply(conf)
	r.log.Info("configuration reloaded", "file", r.path)
}
