package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"

	"github.com/berth-project/berth/internal/failpoint"
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
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	part := func(name string, run func(context.Context) error) {
		wg.Go(func() {
			if err := run(ctx); err != nil && ctx.Err() == nil {
				cancel(fmt.Errorf("%s: %w", name, err))
			}
		})
	}
	part("node", d.node.Run)
	part("server", d.server.Run)
	part("debug", d.debug.run)
	part("configuration", d.reload.run)
	part("ledger", d.reconcile)
	part("labels", d.label)
	part("cluster", func(ctx context.Context) error { return d.cluster.watch(ctx, d.reload.choose) })
	part("node labels", d.labelNode)
	part("mps", d.mps.Run)
	part("sharing", d.share)
	<-ctx.Done()
	wg.Wait()
	d.close()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}
