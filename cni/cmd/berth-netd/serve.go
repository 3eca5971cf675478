package main

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"

	"github.com/berth-project/berth/cni/internal/agent"
	"github.com/berth-project/berth/cni/internal/kube"
	"github.com/berth-project/berth/cni/internal/netdconf"
	"github.com/berth-project/berth/cni/internal/peering"
	"github.com/berth-project/berth/internal/sdnotify"
)

// collect is the garbage collector's target in percent: the agent is nearly always idle, and its memory is every node's.
const collect = 40

func serve(ctx context.Context, file string) error {
	conf, err := netdconf.Load(file)
	if err != nil {
		return err
	}
	if conf.Node == "" {
		if conf.Node, err = os.Hostname(); err != nil {
			return err
		}
	}
	debug.SetGCPercent(collect)
	var level slog.Level
	if err := level.UnmarshalText([]byte(conf.LogLevel)); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	var source agent.Source = agent.File{Path: conf.Fabric}
	if conf.Kubernetes.Enabled {
		if source, err = kube.New(conf.Kubernetes, conf.Node, log); err != nil {
			return err
		}
	}
	speaker := peering.New(peering.Options{
		Program: conf.BGP.Program, UID: conf.BGP.UID, Kept: filepath.Join(conf.State, "bgp-routes"), Log: log,
	})
	return agent.New(conf, source, speaker, log, version).Run(ctx, sdnotify.Send)
}
