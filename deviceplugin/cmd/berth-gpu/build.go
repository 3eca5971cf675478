package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/deviceplugin/internal/config"
	"github.com/berth-project/berth/deviceplugin/internal/discovery"
	"github.com/berth-project/berth/deviceplugin/internal/discovery/child"
	"github.com/berth-project/berth/deviceplugin/internal/discovery/fake"
	"github.com/berth-project/berth/deviceplugin/internal/discovery/nvml"
	"github.com/berth-project/berth/deviceplugin/internal/discovery/procfs"
	"github.com/berth-project/berth/deviceplugin/internal/driver"
	"github.com/berth-project/berth/deviceplugin/internal/ledger"
	"github.com/berth-project/berth/deviceplugin/internal/mps"
	"github.com/berth-project/berth/deviceplugin/internal/node"
	"github.com/berth-project/berth/deviceplugin/internal/server"
	"github.com/berth-project/berth/proto/errs"
	"github.com/berth-project/berth/proto/rpc"
)

// daemon is the wired program.
type daemon struct {
	log    *slog.Logger
	lock   *os.File
	source discovery.Source
	close  func() // of the source
	ledger *ledger.Ledger
	node   *node.Node
	server *server.Server
	edge   *rpc.Edge
	mps    *mps.Supervisor
	debug  *debugServer
	reload *reloader
	// cluster is nil where the API server is not asked.
	cluster *cluster
	// labels is the feature file, podResources the kubelet's socket.
	labels, podResources string
}

// sources is who can be asked, and how the driver's numbers are found.
type sources struct {
	source discovery.Source
	majors func() (driver.Majors, error)
	close  func()
}

// open chooses the source. NVML and, if asked for, a profile are asked through a probe process.
func open(conf config.Config, o options) (sources, error) {
	files := &procfs.Source{Proc: conf.Driver.Proc, Sys: conf.Driver.Sys, KernelLog: "/dev/kmsg"}
	none := func() {}
	if o.fake != "" {
		src, err := fake.Open(o.fake)
		if err != nil {
			return sources{}, err
		}
		if !o.child {
			return sources{src, src.Majors, none}, nil
		}
		c, err := viaChild("fake", o)
		if err != nil {
			return sources{}, err
		}
		return sources{c, src.Majors, c.Close}, nil
	}
	if conf.Discovery == "proc" {
		return sources{files, files.Majors, none}, nil
	}
	c, err := viaChild("nvml", o)
	if err != nil {
		return sources{}, err
	}
	if conf.Discovery == "nvml" {
		return sources{c, files.Majors, c.Close}, nil
	}
	return sources{discovery.Either(c, files), files.Majors, c.Close}, nil
}

func viaChild(name string, o options) (*child.Client, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	var args []string
	if o.config != "" {
		args = append(args, "--config", o.config)
	}
	if o.fake != "" {
		args = append(args, "--fake", o.fake)
	}
	return child.New(name, self, append(args, "probe")), nil
}

// probe is the child: it answers until its input ends.
func probe(ctx context.Context, o options) error {
	conf, err := load(o.config)
	if err != nil {
		return err
	}
	var src discovery.Source
	if o.fake != "" {
		src, err = fake.Open(o.fake)
	} else {
		src, err = nvml.Open(nvml.Config{Library: library(conf), Proc: conf.Driver.Proc, Sys: conf.Driver.Sys})
	}
	if err != nil {
		src = discovery.Broken("nvml", err)
	}
	return child.Serve(ctx, os.Stdin, os.Stdout, src)
}

// library is NVML in the driver's root, or "" for the loader's choice.
func library(conf config.Config) string {
	root := driverRoot(conf)
	if root.View == "/" {
		return "" // the loader knows
	}
	return driver.NVML(root)
}

func load(path string) (config.Config, error) {
	if path == "" {
		return config.Parse(nil)
	}
	return config.Load(path)
}

// lockState keeps a second process with the same state away; the kernel drops the lock with this process.
func lockState(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(errs.FailedPrecondition.Errorf("%s: another berth-gpu serves with this state: stop it, or give this one a state of its own", f.Name()), f.Close())
	}
	return f, nil
}

// build wires everything and starts nothing but the lock.
func build(ctx context.Context, conf config.Config, o options, log *slog.Logger, level *slog.LevelVar) (*daemon, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, err
	}
	d := &daemon{log: log}
	if d.lock, err = lockState(conf.State); err != nil {
		return nil, err
	}
	offer, err := d.offer(ctx, conf, o)
	if err != nil {
		return nil, errors.Join(err, d.lock.Close())
	}
	src, err := open(conf, o)
	if err != nil {
		return nil, errors.Join(err, d.lock.Close())
	}
	d.close = src.close
	if d.ledger, err = ledger.Open(conf.Root, time.Now); err != nil {
		return nil, errors.Join(err, d.lock.Close())
	}
	d.labels, d.podResources = conf.Labels.File, or(conf.Kubelet.PodResources, filepath.Join(conf.Kubelet.Dir, "pod-resources/kubelet.sock"))
	d.learn(ctx)
	limits := discovery.Limits{Inventory: config.Milliseconds(conf.Health.Start), Sample: config.Milliseconds(conf.Health.Timeout)}
	d.source = discovery.NewGuard(src.source, limits)
	root := driverRoot(conf)
	if d.mps, err = d.supervisor(conf, root); err != nil {
		return nil, errors.Join(err, d.lock.Close())
	}
	d.node = node.New(node.Config{
		Dir: conf.Root, BootID: strings.TrimSpace(string(boot)), CDIDir: conf.CDI.Dir,
		Driver: node.Driver{
			Root: root,
			Dev:  conf.Driver.Dev, DevView: or(conf.Driver.DevView, conf.Driver.Dev), Capabilities: conf.Driver.Groups(),
			Majors: src.majors, Optional: o.fake != "",
		},
		Health: conf.Health.Rules(), Poll: config.Milliseconds(conf.Health.Poll), Start: config.Milliseconds(conf.Health.Start), Forget: config.Milliseconds(conf.Health.Forget),
		Policy: offer, MPS: d.mps.Reason, Held: d.ledger.Held, Log: log, Now: time.Now,
	}, d.source)
	d.edge = rpc.NewEdge(log, time.Minute, []string{"/v1beta1.DevicePlugin/ListAndWatch"}, nil)
	d.server = server.New(server.Config{
		State: conf.State, Kubelet: conf.Kubelet.Dir, Plugins: conf.Kubelet.Plugins, Watcher: conf.Kubelet.Registration != "legacy", Legacy: conf.Kubelet.Registration != "watcher",
		Annotations: conf.CDI.Annotations, MPSDir: mpsDir(conf), Log: log, Edge: d.edge,
	}, d.node, d.ledger)
	d.debug = &debugServer{socket: conf.DebugSocket, address: conf.Metrics, view: d.collect, claims: d.serveClaims}
	d.reload.o, d.reload.level, d.reload.log, d.reload.node = o, level, log, d.node
	return d, nil
}

func driverRoot(conf config.Config) driver.Root {
	return driver.Root{Host: conf.Driver.Root, View: or(conf.Driver.View, conf.Driver.Root)}
}

func or(a, b string) string {
	if a == "" {
		return b
	}
	return a
}
