// Package shims starts, finds again, speaks to and replaces the supervisors (berth-shim) of this node. It holds a
// duplicate of every descriptor that a pod or a container lives by, so that no single process's death loses one.
//
// A shim supervises up to a configured number of pods. When its connection ends and its process is gone, a new
// one is started in its place and adopts all it had; containers and their output go on meanwhile. The package
// knows pods and containers by their ids only; what they mean is the business of package pod.
package shims

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"

	"github.com/berth-project/berth/cri/internal/cgroup"
	"github.com/berth-project/berth/cri/internal/systemd"
	"github.com/berth-project/berth/proto/errs"
	v1 "github.com/berth-project/berth/proto/shim/v1"
)

// Config says how shims are run.
type Config struct {
	Binary  string         // absolute path of berth-shim
	Dir     string         // one directory per shim below it: socket and log
	PodsPer int            // pods one shim takes
	Cgroups *cgroup.Layout // hierarchies of this machine
	Group   string         // cgroup below which each shim has its own; with Scopes a slice's
	Scopes  Scopes         // nil: the pool makes its shims' groups by itself
}

// Scopes are systemd's units, where systemd manages the cgroup tree: see package systemd. Adopt moves a process into one
// of its own and is idempotent; the unit ends with its last process.
type Scopes interface {
	Adopt(ctx context.Context, s systemd.Scope, pid int) error
}

// Pool is all shims of the node. Make it with New, call Recover once, then use it from anywhere.
type Pool struct {
	cfg    Config
	log    *slog.Logger
	exited func(v1.Exited)
	oom    func(v1.OOM)
	wg     sync.WaitGroup
	stop   chan struct{} // closed by Close

	heeding sync.Mutex // held from the end of a shim's silence until it was told

	spawn sync.Mutex // held while a shim is chosen or started, so that a burst does not start one each

	mu         sync.Mutex
	closed     bool
	silent     int // shims that have not answered since the start
	shims      map[string]*shim
	pods       map[string]*podEntry
	containers map[string]*containerEntry
	execs      map[string]*execEntry
	profiles   map[string]json.RawMessage
	insisting  map[string]int // how often what is offered again and again was refused at first, by kind and id
}

// New makes a pool that starts nothing. exited and oom are called from the pool's own goroutines, one at a time
// per shim; they must not block for long.
func New(cfg Config, log *slog.Logger, exited func(v1.Exited), oom func(v1.OOM)) *Pool {
	return &Pool{
		cfg: cfg, log: log, exited: exited, oom: oom, stop: make(chan struct{}),
		shims: map[string]*shim{}, pods: map[string]*podEntry{}, containers: map[string]*containerEntry{},
		execs: map[string]*execEntry{}, profiles: map[string]json.RawMessage{},
		insisting: map[string]int{},
	}
}

// Close disconnects from all shims, which go on, and waits for the pool's goroutines.
func (p *Pool) Close() {
	p.mu.Lock()
	if !p.closed {
		close(p.stop)
	}
	p.closed = true
	all := make([]*shim, 0, len(p.shims))
	for _, s := range p.shims {
		all = append(all, s)
	}
	p.mu.Unlock()
	for _, s := range all {
		s.disconnect()
	}
	p.wg.Wait()
}

// Silent is how many supervisors of an earlier daemon live but have not answered yet.
func (p *Pool) Silent() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.silent
}

// AddProfile registers a seccomp profile (runtime-spec linux.seccomp) under its digest, for Start and Exec to
// name. Each shim is given it once.
func (p *Pool) AddProfile(digest string, profile json.RawMessage) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.profiles[digest] = profile
}

// give makes sure that s has a seccomp profile.
func (p *Pool) give(ctx context.Context, s *shim, digest string) error {
	if digest == "" {
		return nil
	}
	p.mu.Lock()
	profile, known := p.profiles[digest], s.profiles[digest]
	p.mu.Unlock()
	if known {
		return nil
	}
	if profile == nil {
		return errs.Internal.Errorf("seccomp profile %s was not registered", digest)
	}
	if _, err := s.call(ctx, v1.MethodPutSeccomp, v1.PutSeccomp{Digest: digest, Profile: profile}, nil, nil); err != nil {
		return fmt.Errorf("seccomp profile: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	s.profiles[digest] = true
	return nil
}
