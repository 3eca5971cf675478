package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/berth-project/berth/cri/internal/apparmor"
	"github.com/berth-project/berth/cri/internal/cgroup"
	"github.com/berth-project/berth/cri/internal/config"
	"github.com/berth-project/berth/cri/internal/image"
	"github.com/berth-project/berth/cri/internal/machine"
	"github.com/berth-project/berth/cri/internal/network"
	"github.com/berth-project/berth/cri/internal/pod"
	"github.com/berth-project/berth/cri/internal/server"
	"github.com/berth-project/berth/cri/internal/shims"
	"github.com/berth-project/berth/cri/internal/stats"
	"github.com/berth-project/berth/cri/internal/store"
	"github.com/berth-project/berth/cri/internal/stream"
	"github.com/berth-project/berth/cri/internal/systemd"
	v1 "github.com/berth-project/berth/proto/shim/v1"
)

// daemon is the wired program.
type daemon struct {
	log     *slog.Logger
	store   *store.Store
	images  *image.Service
	network *network.Network
	shims   *shims.Pool
	systemd *systemd.Manager // nil: cgroups are the daemon's own business
	pods    *pod.Manager
	stream  *stream.Server
	stats   *stats.Collector
	server  *server.Server
	debug   *debugServer
}

// build wires everything and starts nothing. What the machine lacks is said here, once.
func build(conf config.Config, log *slog.Logger) (*daemon, error) {
	facts, err := machine.Probe()
	if err != nil {
		return nil, err
	}
	for _, m := range facts.Missing {
		log.Warn("this machine lacks", "what", m)
	}
	for _, dir := range []string{conf.Root, conf.State} {
		if err := os.MkdirAll(dir, 0o711); err != nil { //nolint:gosec // containers in user namespaces walk through
			return nil, err
		}
		if err := os.Chmod(dir, 0o711); err != nil { //nolint:gosec // as above
			return nil, err
		}
	}
	d := &daemon{log: log}
	if d.store, err = store.Open(filepath.Join(conf.Root, "records"), log); err != nil {
		return nil, err
	}
	groups, err := cgroup.Detect()
	if err != nil {
		return nil, errors.Join(err, d.store.Close())
	}
	if conf.Cgroup.Driver == config.Systemd {
		if d.systemd, err = systemd.New(context.Background(), groups); err != nil {
			return nil, errors.Join(err, d.store.Close())
		}
		if conf.Cgroup.Own, err = cgroup.ExpandSlice(cgroup.Slice(conf.Cgroup.Own)); err != nil {
			return nil, errors.Join(err, d.store.Close())
		}
	}
	if err := d.assemble(conf, facts, groups); err != nil {
		return nil, errors.Join(err, d.store.Close())
	}
	return d, nil
}

// scopes gives the domain and the pool systemd, where it is the cgroup driver; own is Berth's subtree.
func (d *daemon) scopes(own string, p *pod.Config, s *shims.Config) {
	s.Group, p.DefaultPod = own, filepath.Join(own, "pods")
	if d.systemd == nil {
		return
	}
	stem, _ := strings.CutSuffix(filepath.Base(own), ".slice")
	p.Scopes, s.Scopes, p.DefaultPod = d.systemd, d.systemd, stem+"-pods.slice"
}

func (d *daemon) assemble(conf config.Config, facts machine.Facts, groups *cgroup.Layout) error {
	var err error
	d.images, err = image.Open(image.Config{
		Root: filepath.Join(conf.Root, "images"), HostsDir: conf.Image.HostsDir, PreloadDir: conf.Image.PreloadDir,
		Pinned: conf.Image.Pinned, MaxConcurrentDownloads: conf.Image.MaxDownloads, StallTimeout: conf.Image.StallTimeout,
		MinThroughput: conf.Image.MinThroughput, UserAgent: "berth-cri/" + version,
	}, d.log)
	if err != nil {
		return err
	}
	d.network = network.New(network.Config{
		ConfDir: conf.Network.ConfDir, BinDirs: conf.Network.BinDirs, CacheDir: conf.Network.CacheDir, NetnsDir: "/run/netns",
	}, d.log)
	d.debug = newDebugServer(conf.DebugSocket, d.images)
	oci, handlers := handlers(conf)
	domain := pod.Config{
		Root: conf.Root, State: conf.State, OCI: oci, Cgroups: groups, CDIDirs: conf.CDIDirs,
		Features: pod.Features{
			BootID: facts.BootID, LastCap: facts.LastCap, AppArmor: facts.AppArmor, SELinux: facts.SELinux, AppArmorDefault: defaultProfile(facts, d.log),
		},
		Log: d.log, Timeline: d.debug.phase,
	}
	pool := shims.Config{Dir: filepath.Join(conf.State, "shims"), PodsPer: conf.Shim.PodsPer, Cgroups: groups}
	d.scopes(conf.Cgroup.Own, &domain, &pool)
	d.pods = pod.New(domain, d.store, d.images, d.network)
	if pool.Binary, err = shimBinary(conf.Shim.Binary); err != nil {
		return err
	}
	d.shims = shims.New(pool, d.log, d.pods.SupervisorExited, func(o v1.OOM) { d.log.Warn("out of memory", "container", o.Container) })
	d.pods.SetShims(d.shims)
	if d.stream, err = stream.New(conf.Stream.Address, d.pods); err != nil {
		return err
	}
	d.stats = stats.New(d.pods, groups, conf.Root, d.log)
	d.server = server.New(d.pods, d.images, d.network, d.stream, d.stats, server.Info{
		Name: "berth", Version: version, Handlers: handlers, Userns: facts.IDMapped, RRO: facts.RecursiveReadOnly, Systemd: d.systemd != nil,
		Verbose: func() map[string]string { return d.condition(facts) },
	})
	return nil
}

// condition is what a verbose Status adds for who looks at the node: what the machine lacks, which records were damaged,
// how many supervisors do not answer.
func (d *daemon) condition(facts machine.Facts) map[string]string {
	b, err := json.Marshal(map[string]any{
		"lacks": facts.Missing, "quarantinedRecords": d.store.Damaged(), "silentSupervisors": d.shims.Silent(),
	})
	if err != nil {
		b = fmt.Appendf(nil, "%q", err.Error())
	}
	return map[string]string{"node": string(b)}
}

// defaultProfile has the kernel load the AppArmor profile of containers that name none, and returns its name, or nothing.
func defaultProfile(facts machine.Facts, log *slog.Logger) string {
	if !facts.AppArmor {
		return ""
	}
	if err := apparmor.Load(context.Background()); err != nil {
		log.Warn("this machine lacks", "what", "AppArmor's profile "+apparmor.Default+": containers that name none run without one, those that ask for RuntimeDefault are refused", "error", err)
		return ""
	}
	return apparmor.Default
}

func handlers(conf config.Config) (map[string]pod.OCIRuntime, []string) {
	oci, names := map[string]pod.OCIRuntime{}, []string{}
	for name, r := range conf.Runtime {
		oci[name] = pod.OCIRuntime{Binary: r.Binary, Args: r.Args}
		names = append(names, name)
	}
	slices.Sort(names)
	return oci, names
}

// shimBinary is the configured path, or the berth-shim beside this program.
func shimBinary(path string) (string, error) {
	if path == "" {
		self, err := os.Executable()
		if err != nil {
			return "", err
		}
		path = filepath.Join(filepath.Dir(self), "berth-shim")
	}
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("berth-shim: %w: install it there, or set shim.binary", err)
	}
	return path, nil
}

// apply takes over what may change without a restart.
func (d *daemon) apply(conf config.Config) {
	d.images.SetPolicy(conf.Image.Pinned, conf.Image.HostsDir)
}

// close ends what build made. Containers and their supervisors go on.
func (d *daemon) close() {
	d.pods.Close()
	d.shims.Close()
	if d.systemd != nil {
		d.systemd.Close()
	}
	if err := d.store.Close(); err != nil {
		d.log.Error("store", "error", err)
	}
}
