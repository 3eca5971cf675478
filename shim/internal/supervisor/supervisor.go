// Package supervisor is the shim's domain: pods, containers and their ends, behind proto/shim/v1.
//
// A container goes through these states, and is listed from the second on:
//
//	starting --ok--> running --exit--> draining --output read or 250 ms--> exited --Delete--> gone
//	    \--error--> gone
//
// The record of an exit is in the exit file before anybody is told. The package knows nothing of namespaces,
// mounts or system calls: that is the executors', behind [Runtime] and [Workload].
package supervisor

import (
	"context"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/berth-project/berth/proto/errs"
	v1 "github.com/berth-project/berth/proto/shim/v1"
	"github.com/berth-project/berth/shim/internal/executor"
	"github.com/berth-project/berth/shim/internal/reap"
	"github.com/berth-project/berth/shim/internal/seccomp"
	"github.com/berth-project/berth/shim/internal/stdio"
)

// Runtime starts containers. Implementations: the shim's own executor, and OCI command line runtimes.
type Runtime interface {
	// Start starts the container that s describes; oci is nil for the shim's own executor. On an error nothing
	// is left of it.
	Start(ctx context.Context, s *executor.Start, oci *v1.OCIRuntime) (*executor.Process, Workload, error)
	// Adopt gives the Workload of a container that another shim started.
	Adopt(id string, pid int, oci *v1.OCIRuntime) (Workload, error)
	// Pod makes the namespaces of a pod.
	Pod(ctx context.Context, r *v1.RunPod, cg executor.Cgroups) (*executor.Pod, error)
}

// Workload is a started container as its runtime sees it.
type Workload interface {
	// Exec starts a further process; x.Namespaces is the workload's to fill in.
	Exec(ctx context.Context, x *executor.Exec) (*executor.Process, error)
	// Remove removes what the runtime keeps of an ended container. Repeating it is harmless.
	Remove(ctx context.Context) error
}

// Config is what a supervisor is made of.
type Config struct {
	Runtime Runtime
	Reaper  *reap.Reaper
	Poller  *stdio.Poller
	Log     *slog.Logger
	Build   string // version, for HelloReply
	// Empty is called, at most once, when the shim is drained and has neither a pod nor a container.
	Empty func()
}

// Supervisor is the state of one shim. Use New.
type Supervisor struct {
	cfg    Config
	mover  *stdio.Mover
	bootID string
	wg     sync.WaitGroup
	makers chan struct{} // held by starts and execs, see bounded

	mu         sync.Mutex
	pods       map[string]*pod
	containers map[string]*container
	filters    map[string]*executor.Filter
	peers      map[*v1.Peer]bool
	notes      map[string]bool      // degradations already told of
	bygone     map[string]time.Time // ids that were removed before they were there, and how long that counts
	draining   bool
	farewells  int // answers on their way
	emptied    bool
}

// New makes a supervisor without pods.
func New(cfg Config) (*Supervisor, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, err
	}
	return &Supervisor{
		cfg: cfg, mover: stdio.NewMover(cfg.Poller), bootID: strings.TrimSpace(string(boot)),
		makers: make(chan struct{}, makers),
		pods:   map[string]*pod{}, containers: map[string]*container{}, filters: map[string]*executor.Filter{},
		peers: map[*v1.Peer]bool{}, notes: map[string]bool{}, bygone: map[string]time.Time{},
	}, nil
}

// hello registers a daemon for events and lists all there is, in one hold of the lock: every later event comes
// after the list.
func (s *Supervisor) hello(h v1.Hello, peer *v1.Peer) (*v1.HelloReply, error) {
	if h.Version != v1.Version {
		return nil, errs.FailedPrecondition.Errorf("protocol version %d, this shim speaks %d", h.Version, v1.Version)
	}
	s.settle()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.peers[peer] = true
	r := &v1.HelloReply{Version: v1.Version, Pid: os.Getpid(), BootID: s.bootID, Build: s.cfg.Build, Draining: s.draining}
	for _, p := range s.pods {
		r.Pods = append(r.Pods, p.state())
	}
	for _, c := range s.containers {
		if !c.starting {
			r.Containers = append(r.Containers, c.state())
		}
	}
	slices.SortFunc(r.Pods, func(a, b v1.PodState) int { return strings.Compare(a.ID, b.ID) })
	slices.SortFunc(r.Containers, func(a, b v1.ContainerState) int { return strings.Compare(a.ID, b.ID) })
	return r, nil
}

// settleLimit is less than a daemon waits for the answer to Hello.
const settleLimit = 400 * time.Millisecond

// settle waits, briefly, for the starts that a daemon which is dead now asked for: one that the reply leaves out would be
// taken for never started, killed and started again.
func (s *Supervisor) settle() {
	starting := func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, c := range s.containers {
			if c.starting {
				return true
			}
		}
		return false
	}
	for end := time.Now().Add(settleLimit); starting() && time.Now().Before(end); {
		time.Sleep(settleLimit / 200)
	}
}

// leave forgets a daemon whose connection has ended.
func (s *Supervisor) leave(peer *v1.Peer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.peers, peer)
}

// notify sends an event to every daemon.
func (s *Supervisor) notify(name string, body any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for p := range s.peers {
		p.Notify(name, body)
	}
}

// putSeccomp compiles a profile, once.
func (s *Supervisor) putSeccomp(r *v1.PutSeccomp) error {
	s.mu.Lock()
	_, have := s.filters[r.Digest]
	s.mu.Unlock()
	if have {
		return nil
	}
	f, err := seccomp.CompileJSON(r.Profile, runtime.GOARCH)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.filters[r.Digest] = &executor.Filter{Code: string(f.Code), Flags: f.Flags, Profile: r.Profile}
	return nil
}

// filter finds a compiled profile; the empty digest is none.
func (s *Supervisor) filter(digest string) (*executor.Filter, error) {
	if digest == "" {
		return nil, nil //nolint:nilnil // no filter is asked for
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.filters[digest]
	if f == nil {
		return nil, errs.NotFound.Errorf("seccomp profile %s", digest)
	}
	return f, nil
}

// drain refuses new pods from now on.
func (s *Supervisor) drain() {
	s.mu.Lock()
	s.draining = true
	s.mu.Unlock()
}

// farewell is the reply to a request that may take the last thing a drained shim has: the program ends when the
// answers to all such requests are out, not before.
type farewell struct{ s *Supervisor }

func (s *Supervisor) farewell() farewell {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.farewells++
	return farewell{s}
}

// Sent is called by the connection (see v1.Handler).
func (f farewell) Sent() {
	f.s.mu.Lock()
	f.s.farewells--
	f.s.mu.Unlock()
	f.s.checkEmpty()
}

// checkEmpty tells the program to end when a drained shim has nothing left.
func (s *Supervisor) checkEmpty() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining && !s.emptied && s.farewells == 0 && len(s.pods) == 0 && len(s.containers) == 0 {
		s.emptied = true
		s.cfg.Empty()
	}
}

// Busy tells whether there is a pod or a container.
func (s *Supervisor) Busy() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.pods)+len(s.containers) > 0
}

// note logs, once for each kind, what was asked for and could not be had.
func (s *Supervisor) note(id, what string, err error) {
	s.mu.Lock()
	told := s.notes[what]
	s.notes[what] = true
	s.mu.Unlock()
	if !told {
		s.cfg.Log.Warn("going on without something that was asked for; this is said once", "what", what, "err", err, "container", id)
	}
}
