package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"

	"github.com/berth-project/berth/internal/failpoint"
	"github.com/berth-project/berth/internal/parts"
)

// serve runs the plugin until ctx ends. Containers keep their GPUs after it.
func serve(ctx context.Context, o options) error {
	conf, err := load(o.config)
	if err != nil {
		return err
	}
	level := new(slog.LevelVar)
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	if err := level.UnmarshalText([]byte(conf.LogLevel)); err != nil {
		return err
	}
	tuneMemory()
	if err := failpoint.Load(filepath.Join(conf.State, "failpoints")); err != nil {
		return err
	}
	d, err := build(ctx, conf, o, log, level)
	if err != nil {
		return err
	}
	log.Info("serving", "source", d.source.Name(), "version", version)
	return errors.Join(d.run(ctx), d.lock.Close())
}

// tuneMemory trades a little CPU for a smaller heap: the daemon is idle most of its life.
func tuneMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
}

// run serves until ctx ends or a part fails, then stops all parts and waits for them.
func (d *daemon) run(ctx context.Context) error {
	all := parts.Begin(ctx)
	all.Go("node", d.node.Run)
	all.Go("server", d.server.Run)
	all.Go("debug", d.debug.run)
	all.Go("configuration", d.reload.run)
	all.Go("ledger", d.reconcile)
	all.Go("labels", d.label)
	all.Go("cluster", func(ctx context.Context) error { return d.cluster.watch(ctx, d.reload.choose) })
	all.Go("node labels", d.labelNode)
	all.Go("mps", d.mps.Run)
	all.Go("sharing", d.share)
	<-all.Context().Done()
	err := all.Wait()
	d.close()
	return err
}
