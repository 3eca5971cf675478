// Package pod is the domain of the runtime: what a pod sandbox and a container are, which states they go through,
// and the stories behind the CRI's life-cycle verbs, one file each. It decides; packages shims, cgroup and network
// do, images and records come through the ports below.
//
// Rules that hold for every verb: intent is recorded before the first side effect; a retry joins the running
// operation or finds its result; work goes on when its caller leaves; the same teardown serves failure, stop,
// remove and recovery, and each of its steps finds its object by a name computed from the id.
package pod

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/berth-project/berth/cri/internal/cdi"
	"github.com/berth-project/berth/cri/internal/cgroup"
	"github.com/berth-project/berth/cri/internal/image"
	"github.com/berth-project/berth/cri/internal/network"
	"github.com/berth-project/berth/cri/internal/shims"
	"github.com/berth-project/berth/cri/internal/systemd"
	"github.com/berth-project/berth/proto/errs"
	v1 "github.com/berth-project/berth/proto/shim/v1"
)

// Records keeps one record per object, by kind and id. Put and Delete are idempotent and do not wait for the
// disk; Load leaves damaged records out.
type Records interface {
	Put(kind, id string, data []byte) error
	Delete(kind, id string) error
	Load(kind string) (map[string][]byte, error)
	Quarantine(kind, id string, cause error)
}

// Images is what a container needs of the image store. Use pins an image's layers for a holder until Release;
// Retain replaces all holders after a restart.
type Images interface {
	Get(ref string) (*image.Image, error)
	Use(holder, imageID string) (image.Rootfs, error)
	Release(holder string)
	Retain(holders map[string]string)
}

// Network connects pods by CNI and pins their network namespaces: see package network.
type Network interface {
	Attachments
	Pins
}

// Attachments are the CNI verbs. Attach undoes itself on failure; Detach is idempotent.
type Attachments interface {
	Attach(ctx context.Context, a network.Attachment) (network.Result, error)
	Detach(ctx context.Context, a network.Attachment) error
	Check(ctx context.Context, a network.Attachment) error
	GC(ctx context.Context, valid []string) error
}

// Pins give network namespaces a path. Both are idempotent.
type Pins interface {
	Path(podID string) string // where Pin binds the namespace
	Pin(podID string, ns *os.File) (string, error)
	Unpin(podID string) error
}

// Scopes are systemd's units for pods, where systemd manages the cgroup tree: see package systemd. Both are idempotent;
// Remove ends what runs in the scope. Ensure of one that is well costs one read of a file.
type Scopes interface {
	Ensure(ctx context.Context, s systemd.Scope) error
	Remove(ctx context.Context, s systemd.Scope) error
}

// Config is what the domain must know of the node.
type Config struct {
	Root, State string                    // directories: what survives a reboot, what does not
	OCI         map[string]OCIRuntime     // RuntimeClass handlers that are command line runtimes
	Cgroups     *cgroup.Layout            // hierarchies
	Scopes      Scopes                    // nil: pods are groups that the daemon makes by itself (cgroupfs)
	DefaultPod  string                    // cgroup parent of pods whose config names none
	CDIDirs     []string                  // where CDI specifications are, later ones before earlier ones
	Features    Features                  // what this machine can do
	Now         func() time.Time          // clock
	Log         *slog.Logger              // injected
	Timeline    func(pod string, e Phase) // told of each phase of a pod's start; may be nil
}

// OCIRuntime is a configured command line runtime.
type OCIRuntime struct {
	Binary string
	Args   []string
}

// Features are facts about the machine, found once at start.
type Features struct {
	BootID            string
	LastCap           int
	AppArmor, SELinux bool
	AppArmorDefault   string // the profile of containers that name none, if the kernel has it
}

// Phase is one measured step.
type Phase struct {
	Name  string
	Start time.Time
	Took  time.Duration
}

// Manager is all pods and containers of the node.
type Manager struct {
	cfg      Config
	records  Records
	images   Images
	network  Network
	shims    *shims.Pool
	limbo    limbo
	whole    chan struct{} // closed when Recover has looked at everything: what comes back late waits for it
	cdi      *cdi.Registry
	accounts accountCache
	bus      bus
	profiles profileCache
	paths    *lookups
	work     sync.WaitGroup     // detached work, waited for by Close
	life     context.Context    //nolint:containedctx // ends with Close; the parent of all detached work
	end      context.CancelFunc // of life

	recovered chan struct{} // closed when every recorded container's state is known again; exits wait for it

	mu         sync.RWMutex
	pods       map[string]*Pod
	containers map[string]*Container
	flights    map[string]*flight
}

// New makes a manager that knows nothing yet: call Recover before anything else.
func New(cfg Config, records Records, images Images, net Network) *Manager {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	life, end := context.WithCancel(context.Background()) //nolint:gosec // ended by Close
	return &Manager{
		cfg: cfg, records: records, images: images, network: net, life: life, end: end, cdi: cdi.New(cfg.CDIDirs),
		recovered: make(chan struct{}), whole: make(chan struct{}), pods: map[string]*Pod{}, containers: map[string]*Container{}, flights: map[string]*flight{},
		paths: newLookups(),
	}
}

// SetShims gives the manager its supervisors, whose exits it must be given in turn (Exited). It is separate from
// New because each needs the other.
func (m *Manager) SetShims(p *shims.Pool) { m.shims = p }

// closeGrace is how long Close lets detached work finish by itself. What it then cuts short is found again by the
// next daemon: an interrupted creation by its record, an interrupted stop by the kubelet's retry.
const closeGrace = 2 * time.Second

// closeLimit is how long Close then waits for work to see that it has ended. What hangs in the kernel does not.
const closeLimit = 3 * time.Second

// Close ends detached work and waits for it, but not for ever: what does not end by closeLimit ends with the process, and
// the log says so. Containers go on.
func (m *Manager) Close() {
	idle := make(chan struct{})
	go func() { // ends with the work, or with the process
		m.work.Wait()
		close(idle)
	}()
	defer m.end()
	select {
	case <-idle:
		return
	case <-time.After(closeGrace):
		m.end()
	}
	select {
	case <-idle:
	case <-time.After(closeLimit):
		m.cfg.Log.Warn("work that does not end is left to the next start", "waited", closeGrace+closeLimit)
	}
}

// detach returns a context for work that outlives its caller, and counts it. done must be called at its end.
func (m *Manager) detach(ctx context.Context, limit time.Duration) (work context.Context, done func()) {
	m.work.Add(1)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	stop := context.AfterFunc(m.life, cancel)
	return ctx, func() { stop(); cancel(); m.work.Done() }
}

// Pod finds a pod by its id or a prefix that no other has. NotFound otherwise.
func (m *Manager) Pod(id string) (*Pod, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return find(m.pods, "pod sandbox", id)
}

// Container finds a container as Pod does.
func (m *Manager) Container(id string) (*Container, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return find(m.containers, "container", id)
}

func find[T any](all map[string]*T, what, id string) (*T, error) {
	if id == "" {
		return nil, errs.InvalidArgument.Errorf("%s: the id is empty", what)
	}
	if o := all[id]; o != nil {
		return o, nil
	}
	var found *T
	for full, o := range all {
		if strings.HasPrefix(full, id) {
			if found != nil {
				return nil, errs.InvalidArgument.Errorf("%s: more than one id starts with %q", what, id)
			}
			found = o
		}
	}
	if found == nil {
		return nil, errs.NotFound.Errorf("%s %q does not exist", what, id)
	}
	return found, nil
}

// Pods are all pods, oldest first.
func (m *Manager) Pods() []*Pod {
	m.mu.RLock()
	all := make([]*Pod, 0, len(m.pods))
	for _, p := range m.pods {
		all = append(all, p)
	}
	m.mu.RUnlock()
	slices.SortFunc(all, func(a, b *Pod) int {
		return older(a.CreatedAt, b.CreatedAt, a.ID, b.ID)
	})
	return all
}

// Containers are all containers, oldest first.
func (m *Manager) Containers() []*Container {
	m.mu.RLock()
	all := make([]*Container, 0, len(m.containers))
	for _, c := range m.containers {
		all = append(all, c)
	}
	m.mu.RUnlock()
	slices.SortFunc(all, func(a, b *Container) int {
		return older(a.CreatedAt, b.CreatedAt, a.ID, b.ID)
	})
	return all
}

func older(a, b time.Time, ida, idb string) int {
	if c := a.Compare(b); c != 0 {
		return c
	}
	return strings.Compare(ida, idb)
}

// ContainersOf are the containers of one pod, oldest first.
func (m *Manager) ContainersOf(pod string) []*Container {
	return slices.DeleteFunc(m.Containers(), func(c *Container) bool { return c.PodID != pod })
}

func newID() string {
	var raw [32]byte
	_, _ = rand.Read(raw[:]) // never fails (crypto/rand)
	return hex.EncodeToString(raw[:])
}

// flight is a running creation that a retry joins.
type flight struct {
	done chan struct{}
	id   string
	err  error
}

// join runs create under key unless it is running already, and waits for its result or for ctx. The work runs on
// a context of its own, limited in time: a caller that leaves only stops waiting, and its retry gets the result.
func (m *Manager) join(ctx context.Context, key string, limit time.Duration, create func(context.Context) (string, error)) (string, error) {
	m.mu.Lock()
	f := m.flights[key]
	if f == nil {
		f = &flight{done: make(chan struct{})}
		m.flights[key] = f
		work, done := m.detach(ctx, limit)
		go func() {
			defer done()
			f.id, f.err = guard(work, create)
			m.mu.Lock()
			delete(m.flights, key)
			m.mu.Unlock()
			close(f.done)
		}()
	}
	m.mu.Unlock()
	select {
	case <-f.done:
		return f.id, f.err
	case <-ctx.Done():
		return "", fmt.Errorf("%s goes on; a retry gets its result: %w", key, ctx.Err())
	}
}

// guard turns a panic into an error, because the edge's own guard is on another goroutine.
func guard(ctx context.Context, create func(context.Context) (string, error)) (id string, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = errs.Internal.Errorf("panic: %v", r)
		}
	}()
	return create(ctx)
}

// SupervisorExited is for the shims to report ends to.
func (m *Manager) SupervisorExited(x v1.Exited) {
	m.work.Add(1)
	go func() {
		defer m.work.Done()
		select {
		case <-m.recovered: // before that a record may say CREATED of a container that has run and ended
			m.finish(x.Container, x.Exit)
		case <-m.life.Done(): // the next daemon hears of it in Hello
		}
	}()
}
