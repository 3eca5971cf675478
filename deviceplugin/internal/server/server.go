package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
	dp "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
	reg "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/berth-project/berth/deviceplugin/internal/node"
	"github.com/berth-project/berth/proto/rpc"
)

// Config is where the kubelet is.
type Config struct {
	// State is the directory of our own sockets, which the kubelet does not empty.
	State string
	// Kubelet is the kubelet's root directory; Plugins is where its legacy registration is.
	Kubelet, Plugins string
	// Watcher and Legacy are the two ways of registration.
	Watcher, Legacy bool
	Annotations     bool
	MPSDir          string
	Log             *slog.Logger
	Edge            *rpc.Edge
}

// tick is how often sockets are looked at: two calls of stat(2), which nothing can overflow as it can inotify.
const tick = 200 * time.Millisecond

// Server serves every resource of a node.
type Server struct {
	cfg    Config
	node   *node.Node
	ledger Ledger
	// nonce makes the names of this process's sockets its own. The kubelet (1.37) takes a second registration of
	// a socket it still has for the same plugin, refuses it, and forgets the first: no name is used twice.
	nonce  string
	serial int
	served map[string]*resource // Run's alone

	mu     sync.Mutex
	status map[string]Registration
}

// Registration is how one resource stands with the kubelet.
type Registration struct {
	Resource string `json:"resource"`
	// Watched counts the streams on which the kubelet listens.
	Watched int `json:"watched"`
	// Times counts registrations, At is when the last one was, Error why the last attempt failed.
	Times int       `json:"times"`
	At    time.Time `json:"at,omitzero"`
	Error string    `json:"error,omitempty"`
}

// resource is one that is served.
type resource struct {
	plugin   *plugin
	own      *endpoint // for the watcher
	registry *endpoint
	legacy   *endpoint
	kubelet  kubeletSocket // with which legacy is registered
	since    time.Time     // when
	retry    time.Time     // not before
	failed   error         // the last attempt's
	err      once
}

// New makes a server that serves nothing yet.
func New(cfg Config, n *node.Node, l Ledger) *Server {
	return &Server{
		cfg: cfg, node: n, ledger: l, served: map[string]*resource{}, status: map[string]Registration{},
		nonce: strconv.FormatInt(time.Now().UnixNano(), 36),
	}
}

// Run serves what the node offers until ctx ends.
func (s *Server) Run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, s.stop()) }()
	if err := s.sweep(); err != nil {
		return err
	}
	t := time.NewTicker(tick)
	defer t.Stop()
	for {
		state, changed := s.node.State()
		s.reconcile(ctx, state)
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-t.C:
		}
	}
}

// sweep removes the sockets an earlier process left: nobody answers on them.
func (s *Server) sweep() error {
	var all []error
	for _, glob := range []string{
		filepath.Join(s.cfg.State, "berth-gpu_*.sock"), filepath.Join(s.cfg.Kubelet, "plugins_registry", "berth-gpu_*-reg.sock"),
		filepath.Join(s.cfg.Plugins, "berth-gpu_*.sock"),
	} {
		names, err := filepath.Glob(glob)
		all = append(all, err)
		for _, n := range names {
			if l, err := rpc.Listen(n); err == nil { // it was stale, and is ours now
				all = append(all, l.Close()) // which unlinks it
			}
		}
	}
	return errors.Join(all...)
}

// reconcile makes what is served what is offered, and every registration good.
func (s *Server) reconcile(ctx context.Context, state *node.State) {
	offered := map[string]bool{}
	for _, r := range state.Plan.Resources {
		name := r.Rule.Name
		// without a single device a resource is not offered until it has had one
		if s.served[name] == nil && len(r.Devices) == 0 {
			continue
		}
		offered[name] = true
		if s.served[name] == nil {
			s.served[name] = &resource{plugin: newPlugin(name, s.node, s.ledger, responder{s.cfg.Annotations, s.cfg.MPSDir})}
		}
		x := s.served[name]
		err := s.ensure(ctx, x)
		if x.err.news(err) && ctx.Err() == nil {
			s.cfg.Log.Warn("not registered", "resource", name, "error", err)
		}
		s.note(x, err)
	}
	for _, name := range slices.Sorted(maps.Keys(s.served)) {
		if !offered[name] {
			s.drop(name)
		}
	}
}

// ensure does the next thing that a resource needs, both ways.
func (s *Server) ensure(ctx context.Context, x *resource) error {
	var all []error
	if s.cfg.Watcher {
		all = append(all, s.ensureWatcher(x))
	}
	if s.cfg.Legacy {
		all = append(all, s.ensureLegacy(ctx, x))
	}
	return errors.Join(all...)
}

// ensureWatcher keeps a socket in plugins_registry. The kubelet finds it by itself, again after each restart, and
// dials the one in our own directory. While the kubelet's directory does not exist there is no kubelet.
func (s *Server) ensureWatcher(x *resource) error {
	dir := filepath.Join(s.cfg.Kubelet, "plugins_registry")
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if x.registry != nil && x.registry.there() && x.own.there() {
		return nil
	}
	if err := trusted(dir); err != nil {
		return err
	}
	var err error
	for _, e := range []**endpoint{&x.registry, &x.own} {
		if *e != nil {
			err = errors.Join(err, (*e).close())
			*e = nil
		}
	}
	if err != nil {
		return err
	}
	x.own, err = serve(s.socket(s.cfg.State, x), s.cfg.Edge, func(g *grpc.Server) { dp.RegisterDevicePluginServer(g, x.plugin) })
	if err != nil {
		return err
	}
	r := &registry{resource: x.plugin.name, endpoint: x.own.path, told: func(err error) { s.registered(x.plugin.name, "watcher", err) }}
	x.registry, err = serve(filepath.Join(dir, "berth-gpu_"+file(x.plugin.name)+"-reg.sock"), s.cfg.Edge, func(g *grpc.Server) { reg.RegisterRegistrationServer(g, r) })
	return err
}

// socket is a new name.
func (s *Server) socket(dir string, x *resource) string {
	s.serial++
	return filepath.Join(dir, fmt.Sprintf("berth-gpu_%.24s_%s%d.sock", file(x.plugin.name), s.nonce, s.serial))
}

// grace is how long a kubelet that took a registration may take to open its stream.
const grace = 3 * time.Second

// ensureLegacy registers with each kubelet once: when its socket is new, when ours was removed, and when it took
// the registration and does not listen.
func (s *Server) ensureLegacy(ctx context.Context, x *resource) error {
	dir := s.cfg.Plugins
	k := look(dir)
	if k.stamp == "" {
		return nil
	}
	deaf := x.plugin.watchers() == 0 && time.Since(x.since) > grace
	if x.legacy != nil && x.legacy.there() && k == x.kubelet && !deaf {
		return nil
	}
	if time.Now().Before(x.retry) && k == x.kubelet {
		return x.failed
	}
	if err := trusted(dir); err != nil {
		return err
	}
	if x.legacy != nil {
		old := x.legacy
		x.legacy = nil
		if err := old.close(); err != nil {
			return err
		}
	}
	var err error
	x.kubelet, x.retry = k, time.Now().Add(time.Second)
	x.legacy, err = serve(s.socket(dir, x), s.cfg.Edge, func(g *grpc.Server) { dp.RegisterDevicePluginServer(g, x.plugin) })
	if err != nil {
		return err
	}
	if x.failed = registerLegacy(ctx, k.path, x.plugin.name, x.legacy.path); x.failed != nil {
		old := x.legacy
		x.legacy = nil
		return errors.Join(x.failed, old.close())
	}
	x.since = time.Now()
	s.registered(x.plugin.name, "legacy", nil)
	return nil
}

// registered notes what the kubelet answered.
func (s *Server) registered(name, way string, err error) {
	s.mu.Lock()
	r := s.status[name]
	r.Resource = name
	if err == nil {
		r.Times, r.At = r.Times+1, time.Now()
	} else {
		r.Error = err.Error()
	}
	s.status[name] = r
	s.mu.Unlock()
	if err != nil {
		s.cfg.Log.Warn("registration refused", "resource", name, "way", way, "error", err)
		return
	}
	s.cfg.Log.Info("registered", "resource", name, "way", way)
}

func (s *Server) note(x *resource, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.status[x.plugin.name]
	r.Resource, r.Watched, r.Error = x.plugin.name, x.plugin.watchers(), ""
	if err != nil {
		r.Error = err.Error()
	}
	s.status[x.plugin.name] = r
}

// Status lists how the resources stand, by name.
func (s *Server) Status() []Registration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.SortedFunc(maps.Values(s.status), func(a, b Registration) int {
		if a.Resource < b.Resource {
			return -1
		}
		return 1
	})
}

// drop ends a resource: an empty list first, so that the kubelet counts nothing, then the sockets.
func (s *Server) drop(name string) {
	x := s.served[name]
	delete(s.served, name)
	s.mu.Lock()
	delete(s.status, name)
	s.mu.Unlock()
	close(x.plugin.gone)
	for end := time.Now().Add(time.Second); x.plugin.watchers() > 0 && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
	if err := x.close(); err != nil {
		s.cfg.Log.Error("sockets of a dropped resource", "resource", name, "error", err)
	}
	s.cfg.Log.Info("resource dropped", "resource", name)
}

func (x *resource) close() error {
	var all []error
	for _, e := range []*endpoint{x.registry, x.legacy, x.own} {
		if e != nil {
			all = append(all, e.close())
		}
	}
	return errors.Join(all...)
}

// stop closes everything without an empty list: the next process registers before the kubelet forgets.
func (s *Server) stop() error {
	var all []error
	for _, x := range s.served {
		all = append(all, x.close())
	}
	return errors.Join(all...)
}
