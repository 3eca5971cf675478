package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/berth-project/berth/csi/internal/btrfs"
	"github.com/berth-project/berth/csi/internal/cluster"
	"github.com/berth-project/berth/csi/internal/config"
	"github.com/berth-project/berth/csi/internal/dir"
	"github.com/berth-project/berth/csi/internal/driver"
	"github.com/berth-project/berth/csi/internal/journal"
	"github.com/berth-project/berth/csi/internal/loop"
	"github.com/berth-project/berth/csi/internal/lvm"
	"github.com/berth-project/berth/csi/internal/pool"
	"github.com/berth-project/berth/csi/internal/registration"
	"github.com/berth-project/berth/csi/internal/static"
	"github.com/berth-project/berth/csi/internal/volume"
	"github.com/berth-project/berth/proto/errs"
)

// daemon is the wired program.
type daemon struct {
	conf         config.Config
	log          *slog.Logger
	journal      *journal.Journal
	volumes      *volume.Manager
	driver       *driver.Driver
	registration *registration.Server
	debug        *debugServer
	loops        *cluster.Loops // nil: not enabled
}

// build wires everything and starts nothing. A pool that cannot keep what it promises is refused here.
func build(conf config.Config, log *slog.Logger) (*daemon, error) {
	d := &daemon{conf: conf, log: log}
	if conf.Node == "" {
		name, err := os.Hostname()
		if err != nil {
			return nil, err
		}
		d.conf.Node = strings.ToLower(name)
	}
	for _, dir := range []string{conf.Root, conf.State} {
		if err := errors.Join(os.MkdirAll(dir, 0o700), os.Chmod(dir, 0o700)); err != nil {
			return nil, err
		}
	}
	j, damaged, err := journal.Open(filepath.Join(conf.Root, "journal"))
	if err != nil {
		return nil, err
	}
	for _, what := range damaged {
		log.Error("the journal was damaged; what it lost shows up among the orphans", "what", what)
	}
	d.journal = j
	if err := d.assemble(); err != nil {
		return nil, errors.Join(err, j.Close())
	}
	return d, nil
}

func (d *daemon) assemble() error {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	kubelet, err := filepath.EvalSymlinks(d.conf.KubeletDir)
	if err != nil {
		return fmt.Errorf("kubelet_dir: %w", err)
	}
	if kubelet != d.conf.KubeletDir {
		return fmt.Errorf("kubelet_dir: %s is a symbolic link: name %s, and in the kubelet's --root-dir too", d.conf.KubeletDir, kubelet)
	}
	c := volume.Config{KubeletDir: d.conf.KubeletDir, Boot: strings.TrimSpace(string(boot)), Log: d.log}
	c.Changed = func(pool string) {
		if d.loops != nil {
			d.loops.Changed(pool)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(d.conf.Pools)) {
		p, err := d.pool(name, d.conf.Pools[name])
		if err != nil {
			return fmt.Errorf("pools.%s: %w", name, err)
		}
		if p.Missing != nil {
			d.log.Error("a pool is not there: the others are served, and it is looked for", "pool", name, "error", p.Missing)
		}
		c.Pools = append(c.Pools, p)
	}
	if d.volumes, err = volume.New(c, d.journal); err != nil {
		return err
	}
	d.driver = driver.New(d.volumes, driver.Info{Name: d.conf.Driver, Version: version, Node: d.conf.Node, MaxVolumes: d.conf.MaxVolumes})
	d.registration = registration.New(d.conf.Driver, d.conf.Socket, d.log)
	d.debug = newDebugServer(d.conf.DebugSocket, d.volumes)
	return d.watch()
}

// created is when a volume was made, or zero.
func (d *daemon) created(id string) time.Time {
	v, err := d.volumes.Volume(id)
	if err != nil {
		return time.Time{}
	}
	return v.Created
}

// watch makes the loops that need the API server, if they are wanted.
func (d *daemon) watch() error {
	k := d.conf.Cluster
	if !k.Enabled {
		return nil
	}
	after, err := time.ParseDuration(k.OrphanAge)
	if err != nil {
		return err
	}
	d.loops, err = cluster.New(cluster.Config{
		Name: d.conf.Driver, Node: d.conf.Node, TopologyKey: driver.TopologyKey(d.conf.Driver), Kubeconfig: k.Kubeconfig,
		QPS: k.QPS, Burst: k.Burst, Workers: k.Workers, Namespace: k.Namespace, OrphanAfter: after, Log: d.log,
		Created: d.created,
	}, d.driver)
	if err != nil {
		return err
	}
	d.debug.unclaimed = d.loops.Unclaimed
	return nil
}

// pool is a pool that is configured. One that is not there now (not mounted, not readable) is looked for later; one
// that cannot keep what it promises, or is not what the configuration says, is refused.
func (d *daemon) pool(name string, c config.Pool) (volume.Pool, error) {
	size, serr := config.Bytes(c.Size)
	free, ferr := config.Bytes(c.KeepFree)
	if err := errors.Join(serr, ferr); err != nil {
		return volume.Pool{}, err
	}
	out := volume.Pool{
		Name: name, Path: c.Where(), Kind: c.Backend, Size: size, KeepFree: free, Overcommit: c.Overcommit, Inline: c.Ephemeral, Default: c.Default,
		Open: func() (volume.Backend, error) { return d.open(name, c) },
	}
	b, err := out.Open()
	switch errs.Of(err) {
	case "":
		out.Backend = b
	case errs.FailedPrecondition, errs.InvalidArgument:
		return out, err
	default:
		out.Missing = err
	}
	return out, nil
}

// open opens a pool. Its identity is recorded the first time, so that an unmounted one is told from a new one.
func (d *daemon) open(name string, c config.Pool) (volume.Backend, error) {
	key := "pool/" + name
	known := strings.Trim(string(d.journal.Get(key)), `"`)
	b, id, err := backend(name, known, c)
	if err != nil {
		return nil, err
	}
	if known == "" {
		if err := d.journal.Put(key, id, true); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// backend opens the storage of a pool, which has had the identity known before, or is new.
func backend(name, known string, c config.Pool) (b volume.Backend, id string, err error) {
	if c.Backend == "lvm" {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		l, err := lvm.New(ctx, lvm.Pool{Name: name, Program: c.Program, Group: c.Group, Thin: c.ThinPool, Known: known})
		if err != nil {
			return nil, "", err
		}
		return l, l.ID(), nil
	}
	p, err := pool.Open(c.Path, name, known)
	if err != nil {
		return nil, "", err
	}
	switch c.Backend {
	case "btrfs":
		b, err = btrfs.New(p)
	case "dir":
		b, err = dir.New(p)
	case "static":
		b, err = static.New(p, c.Devices)
	default: // validated: there is no other
		b, err = loop.New(p)
	}
	return b, p.ID(), err
}
