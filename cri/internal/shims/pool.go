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
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/cri/internal/cgroup"
	"github.com/berth-project/berth/proto/errs"
	v1 "github.com/berth-project/berth/proto/shim/v1"
)

// Config says how shims are run.
type Config struct {
	Binary  string         // absolute path of berth-shim
	Dir     string         // one directory per shim below it: socket and log
	PodsPer int            // pods one shim takes
	Cgroups *cgroup.Layout // hierarchies of this machine
	Group   string         // cgroup below which each shim has its own
}

// Pool is all shims of the node. Make it with New, call Recover once, then use it from anywhere.
type Pool struct {
	cfg    Config
	log    *slog.Logger
	exited func(v1.Exited)
	oom    func(v1.OOM)
	wg     sync.WaitGroup

	spawn sync.Mutex // held while a shim is chosen or started, so that a burst does not start one each

	mu         sync.Mutex
	closed     bool
	shims      map[string]*shim
	pods       map[string]*podEntry
	containers map[string]*containerEntry
	execs      map[string]*execEntry
	profiles   map[string]json.RawMessage
}

type podEntry struct {
	shim    *shim
	ns      map[string]*os.File
	order   []string
	initPid int
	init    *os.File
}

type containerEntry struct {
	shim    *shim
	static  v1.Container
	oci     *v1.OCIRuntime
	pid     int
	started time.Time
	names   []string
	handles map[string]*os.File
	exited  bool
}

type execEntry struct {
	shim      *shim
	container string
	id        string
	pidfd     *os.File
	done      chan v1.Exit // buffered: one value
}

// New makes a pool that starts nothing. exited and oom are called from the pool's own goroutines, one at a time
// per shim; they must not block for long.
func New(cfg Config, log *slog.Logger, exited func(v1.Exited), oom func(v1.OOM)) *Pool {
	return &Pool{
		cfg: cfg, log: log, exited: exited, oom: oom,
		shims: map[string]*shim{}, pods: map[string]*podEntry{}, containers: map[string]*containerEntry{},
		execs: map[string]*execEntry{}, profiles: map[string]json.RawMessage{},
	}
}

// Close disconnects from all shims, which go on, and waits for the pool's goroutines.
func (p *Pool) Close() {
	p.mu.Lock()
	p.closed = true
	all := make([]*shim, 0, len(p.shims))
	for _, s := range p.shims {
		all = append(all, s)
	}
	p.mu.Unlock()
	for _, s := range all {
		s.client().Close()
	}
	p.wg.Wait()
}

// AddProfile registers a seccomp profile (runtime-spec linux.seccomp) under its digest, for Start and Exec to
// name. Each shim is given it once.
func (p *Pool) AddProfile(digest string, profile json.RawMessage) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.profiles[digest] = profile
}

// place chooses the shim of a new pod, starting one if all are full.
func (p *Pool) place(ctx context.Context) (*shim, error) {
	p.spawn.Lock()
	defer p.spawn.Unlock()
	p.mu.Lock()
	load := map[*shim]int{}
	for _, e := range p.pods {
		load[e.shim]++
	}
	var best *shim
	for _, s := range p.shims {
		n := load[s] + s.reserved
		if s.draining || n >= p.cfg.PodsPer {
			continue
		}
		if best == nil || n > load[best]+best.reserved { // fill one before the next
			best = s
		}
	}
	if best != nil {
		best.reserved++
		p.mu.Unlock()
		return best, nil
	}
	p.mu.Unlock()
	s, err := p.start(ctx)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	s.reserved++
	return s, nil
}

// RunPod makes a pod's namespaces in some shim. The descriptors it returns by kind stay the pool's.
func (p *Pool) RunPod(ctx context.Context, req v1.RunPod, groups *cgroup.Handles) (map[string]*os.File, error) {
	s, err := p.place(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		p.mu.Lock()
		s.reserved--
		p.mu.Unlock()
	}()
	req.Cgroups = announce(groups)
	var reply v1.RunPodReply
	fds, err := s.call(ctx, v1.MethodRunPod, req, files(groups), &reply)
	if err != nil {
		return nil, fmt.Errorf("shim %s: %w", s.id, err)
	}
	e := &podEntry{shim: s, ns: map[string]*os.File{}, order: reply.Namespaces, initPid: reply.InitPid}
	if len(fds) < len(reply.Namespaces) {
		closeAll(fds)
		return nil, errs.Internal.Errorf("shim %s: %d namespaces but %d descriptors", s.id, len(reply.Namespaces), len(fds))
	}
	for i, kind := range reply.Namespaces {
		e.ns[kind] = fds[i]
	}
	if rest := fds[len(reply.Namespaces):]; len(rest) > 0 {
		e.init = rest[0]
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pods[req.ID] = e
	return e.ns, nil
}

// Namespace is the pool's descriptor of a pod's namespace, or nil.
func (p *Pool) Namespace(pod, kind string) *os.File {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e := p.pods[pod]; e != nil {
		return e.ns[kind]
	}
	return nil
}

// RemovePod ends the shim's and the pool's hold on a pod. An unknown pod is fine. If the shim does not answer
// within the time of ctx, the pool's hold ends all the same and the error says so.
func (p *Pool) RemovePod(ctx context.Context, id string) error {
	p.mu.Lock()
	e := p.pods[id]
	p.mu.Unlock()
	if e == nil {
		return nil
	}
	if e.init != nil {
		_ = unix.PidfdSendSignal(int(e.init.Fd()), unix.SIGKILL, nil, 0) // gone already is fine
	}
	_, err := e.shim.call(ctx, v1.MethodRemovePod, v1.PodRef{ID: id}, nil, nil)
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.pods, id)
	for _, f := range e.ns {
		_ = f.Close()
	}
	if e.init != nil {
		_ = e.init.Close()
	}
	return err
}

// Started is what Start tells of a running container.
type Started struct {
	Pid  int
	At   time.Time
	Shim string
}

// Start starts a container in its pod's shim.
func (p *Pool) Start(ctx context.Context, req v1.Start, groups *cgroup.Handles) (Started, error) {
	p.mu.Lock()
	pod := p.pods[req.Pod]
	p.mu.Unlock()
	if pod == nil {
		return Started{}, errs.FailedPrecondition.Errorf("pod %s has no supervisor: it is stopped", req.Pod)
	}
	s := pod.shim
	if err := p.give(ctx, s, req.Seccomp); err != nil {
		return Started{}, err
	}
	req.Cgroups = announce(groups)
	var reply v1.StartReply
	fds, err := s.call(ctx, v1.MethodStart, req, files(groups), &reply)
	if err != nil {
		return Started{}, err
	}
	e := &containerEntry{shim: s, static: req.Container, oci: req.OCI, pid: reply.Pid, started: reply.StartedAt, names: reply.Handles, handles: byName(reply.Handles, fds)}
	p.mu.Lock()
	defer p.mu.Unlock()
	if old := p.containers[req.ID]; old != nil { // its exit event came first
		e.exited = old.exited
	}
	p.containers[req.ID] = e
	return Started{Pid: reply.Pid, At: reply.StartedAt, Shim: s.id}, nil
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

// Signal sends a signal to a container's init, by its pidfd: no shim is asked and no pid can be mistaken.
// NotFound: the pool does not know the container. A process that is gone is fine.
func (p *Pool) Signal(id string, sig unix.Signal) error {
	f, err := p.handle(id, v1.HandlePidfd)
	if err != nil {
		return err
	}
	if err := unix.PidfdSendSignal(int(f.Fd()), sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal container %s: %w", id, err)
	}
	return nil
}

func (p *Pool) handle(id, name string) (*os.File, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.containers[id]
	if e == nil || e.handles[name] == nil {
		return nil, errs.NotFound.Errorf("container %s has no %s", id, name)
	}
	return e.handles[name], nil
}

// dropHandle closes the pool's duplicate of one descriptor.
func (p *Pool) dropHandle(id, name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e := p.containers[id]; e != nil && e.handles[name] != nil {
		_ = e.handles[name].Close()
		delete(e.handles, name)
	}
}

// Console is the terminal of a container that has one; it stays the pool's.
func (p *Pool) Console(id string) (*os.File, error) { return p.handle(id, v1.HandleConsole) }

// Dead says whether a container's init process has ended, whatever its shim has told so far. A container that
// the pool does not know is dead.
func (p *Pool) Dead(id string) bool {
	f, err := p.handle(id, v1.HandlePidfd)
	if err != nil {
		return true
	}
	fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLIN}} //nolint:gosec // a descriptor
	n, err := unix.Poll(fds, 0)
	return err == nil && n == 1
}

// ExitOf is what the kernel itself knows of the end of a dead container (PIDFD_INFO_EXIT, Linux 6.15).
func (p *Pool) ExitOf(id string) v1.Exit {
	f, err := p.handle(id, v1.HandlePidfd)
	if err != nil {
		return v1.Exit{Code: 255, Unknown: true, At: time.Now()}
	}
	return exitOf(f)
}

// ReopenLog makes the shim continue a container's log in a new file.
func (p *Pool) ReopenLog(ctx context.Context, id string) error {
	s, err := p.shimOf(id)
	if err != nil {
		return err
	}
	_, err = s.call(ctx, v1.MethodReopenLog, v1.ContainerRef{ID: id}, nil, nil)
	return err
}

// Attach hands streams (by the names of proto/shim/v1) to a container's shim. The files stay the caller's.
func (p *Pool) Attach(ctx context.Context, id string, names []string, streams []*os.File) error {
	s, err := p.shimOf(id)
	if err != nil {
		return err
	}
	_, err = s.call(ctx, v1.MethodAttach, v1.Attach{Container: id, Stdio: names}, streams, nil)
	return err
}

func (p *Pool) shimOf(id string) (*shim, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.containers[id]
	if e == nil {
		return nil, errs.NotFound.Errorf("container %s has no supervisor", id)
	}
	return e.shim, nil
}

// Delete makes a container's shim and the pool forget it. An unknown one is fine.
func (p *Pool) Delete(ctx context.Context, id string) error {
	s, err := p.shimOf(id)
	if err != nil {
		return nil //nolint:nilerr // nothing to forget
	}
	_, err = s.call(ctx, v1.MethodDelete, v1.ContainerRef{ID: id}, nil, nil)
	if err != nil && !errors.Is(err, errs.Unavailable) {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if e := p.containers[id]; e != nil {
		for _, f := range e.handles {
			_ = f.Close()
		}
		delete(p.containers, id)
	}
	return err
}

func announce(h *cgroup.Handles) v1.Cgroups {
	if h == nil {
		return v1.Cgroups{}
	}
	return v1.Cgroups{Unified: h.Unified != nil, V1: len(h.Tasks)}
}

func files(h *cgroup.Handles) []*os.File {
	if h == nil {
		return nil
	}
	return h.Files()
}

func byName(names []string, fds []*os.File) map[string]*os.File {
	m := map[string]*os.File{}
	for i, f := range fds {
		if i < len(names) {
			m[names[i]] = f
		} else {
			_ = f.Close()
		}
	}
	return m
}

func closeAll(fds []*os.File) {
	for _, f := range fds {
		_ = f.Close()
	}
}
