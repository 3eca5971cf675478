package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"time"

	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/cri/internal/config"
	"github.com/berth-project/berth/cri/internal/server"
	"github.com/berth-project/berth/internal/failpoint"
	"github.com/berth-project/berth/internal/parts"
	"github.com/berth-project/berth/internal/sdnotify"
	"github.com/berth-project/berth/proto/rpc"
)

// callDeadline is for calls that come without one; the kubelet always sets its own.
const callDeadline = 10 * time.Minute

// stopGrace is how long calls under way may take once the daemon is told to end.
const stopGrace = 3 * time.Second

// serve runs the daemon until ctx ends. Containers go on after it.
func serve(ctx context.Context, path string) error {
	conf, err := load(path)
	if err != nil {
		return err
	}
	level := new(slog.LevelVar)
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	setLevel(level, conf.LogLevel)
	defer runtime.KeepAlive(tuneMemory())
	if err := failpoint.Load(filepath.Join(conf.State, "failpoints")); err != nil {
		return err
	}
	d, err := build(conf, log)
	if err != nil {
		return err
	}
	defer d.close()
	l, err := rpc.Listen(conf.Socket)
	if err != nil {
		return err
	}
	start := time.Now()
	if err := d.pods.Recover(ctx); err != nil {
		return errors.Join(fmt.Errorf("recovery: %w", err), l.Close())
	}
	log.Info("recovered", "pods", len(d.pods.Pods()), "containers", len(d.pods.Containers()), "took", time.Since(start))
	return d.run(ctx, l, &reloader{path: path, level: level, log: log, apply: d.apply})
}

func load(path string) (config.Config, error) {
	if path == "" {
		return config.Parse(nil)
	}
	return config.Load(path)
}

func setLevel(v *slog.LevelVar, name string) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(name)); err == nil { // validated
		v.Set(l)
	}
}

// tuneMemory trades a little CPU for a smaller heap: the daemon is idle most of its life. What it returns is to be kept
// until the end. It is never touched, so it takes no memory, but the collector's goal counts it: without it the daemon
// of a small node would collect at every megabyte, which is every pod.
func tuneMemory() (ballast []byte) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
	return make([]byte, 6<<20)
}

// run serves until ctx ends or a part fails, then stops all parts and waits for them.
func (d *daemon) run(ctx context.Context, l net.Listener, reload *reloader) error {
	all := parts.Begin(ctx)
	all.Go("store", d.store.Run)
	all.Go("orphans", d.shims.Collect)
	all.Go("images", d.images.Run)
	all.Go("network", d.network.Run)
	all.Go("streaming", d.stream.Run)
	all.Go("stats", d.stats.Run)
	all.Go("configuration", reload.run)
	all.Go("debug", d.debug.run)
	g := grpc.NewServer(rpc.NewEdge(d.log, callDeadline, server.Endless(), d.debug.calls.Observe).Options()...)
	cri.RegisterRuntimeServiceServer(g, d.server)
	cri.RegisterImageServiceServer(g, d.server)
	all.Go("grpc", func(context.Context) error { return g.Serve(l) })
	d.log.Info("serving", "socket", l.Addr().String(), "streaming", d.stream.Address(), "version", version)
	sdnotify.Send("READY=1")
	<-all.Context().Done()
	sdnotify.Send("STOPPING=1")
	d.pods.EndEvents()
	rpc.Stop(g, stopGrace)
	return all.Wait()
}
