// Package mps supervises one MPS control daemon (nvidia-cuda-mps-control, "Multi-Process Service" in NVIDIA's
// documentation) for each GPU that is shared by MPS: started, asked every few seconds whether it answers, restarted
// with growing pauses when it does not, and ended with its GPU's rule. While it does not serve, the shares of its GPU
// are unhealthy and say so.
//
//	<dir>/<GPU UUID>/pipe   the daemon's sockets, mounted into clients
//	<dir>/<GPU UUID>/shm    a tmpfs: /dev/shm of the daemon and of its clients, and of nobody else
//	<dir>/<GPU UUID>/log    its logs
//
// Clients need neither the host's pid namespace nor its /dev/shm.
package mps

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// GPU is one GPU that is shared.
type GPU struct {
	UUID string
	// Memory is what each client may have, in bytes; Replicas how many there may be.
	Memory   uint64
	Replicas int
}

// Config is where everything is.
type Config struct {
	// Self is this program, which becomes the daemon in a mount namespace of its own: see Become.
	Self string
	// Control is nvidia-cuda-mps-control, Libraries the directory of libcuda unless the loader finds it.
	Control, Libraries string
	Dir                string
	// Check is how often a daemon is asked, Answer how long it may take, Pause the first pause before a restart.
	Check, Answer, Pause time.Duration
	Log                  *slog.Logger
	// Changed is called when a daemon begins or ceases to serve.
	Changed func()
}

// maxPause bounds the pause before a restart.
const maxPause = 30 * time.Second

// Supervisor runs the daemons. Make it with New, give it GPUs with Set, run it with Run.
type Supervisor struct {
	cfg  Config
	wake chan struct{}

	mu      sync.Mutex
	want    map[string]GPU
	reasons map[string]string // why a GPU's daemon does not serve
	serving map[string]bool
}

// New makes a supervisor without GPUs.
func New(cfg Config) *Supervisor {
	return &Supervisor{cfg: cfg, wake: make(chan struct{}, 1), want: map[string]GPU{}, reasons: map[string]string{}, serving: map[string]bool{}}
}

// Set replaces the GPUs that are shared.
func (s *Supervisor) Set(gpus []GPU) {
	next := map[string]GPU{}
	for _, g := range gpus {
		next[g.UUID] = g
	}
	s.mu.Lock()
	same := maps.Equal(next, s.want)
	s.want = next
	s.mu.Unlock()
	if same {
		return
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Reason is why a GPU's daemon does not serve; "" if it does.
func (s *Supervisor) Reason(uuid string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.serving[uuid] {
		return ""
	}
	return "MPS: " + cmp.Or(s.reasons[uuid], "its daemon is starting")
}

func (s *Supervisor) note(uuid string, err error) {
	s.mu.Lock()
	was, had := s.serving[uuid], s.reasons[uuid]
	s.serving[uuid] = err == nil
	delete(s.reasons, uuid)
	if err != nil {
		s.reasons[uuid] = err.Error()
	}
	news := was != (err == nil) || had != s.reasons[uuid]
	s.mu.Unlock()
	if !news {
		return
	}
	if err != nil {
		s.cfg.Log.Warn("MPS daemon does not serve", "gpu", uuid, "error", err)
	} else {
		s.cfg.Log.Info("MPS daemon serves", "gpu", uuid)
	}
	s.cfg.Changed()
}

// Run keeps a daemon for each GPU until ctx ends, then ends them: a client without a daemon cannot go on, so a
// plugin that is upgraded ends the programs on shared GPUs. There is no way around that: the daemon is their way to
// the GPU, and nobody would watch one that was left alone.
func (s *Supervisor) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	running := map[string]context.CancelFunc{}
	have := map[string]GPU{}
	ended := map[string]chan struct{}{} // of the last keeper of each GPU
	defer func() {
		for _, end := range running {
			end()
		}
	}()
	for {
		s.mu.Lock()
		want := maps.Clone(s.want)
		s.mu.Unlock()
		for _, uuid := range slices.Sorted(maps.Keys(running)) {
			if want[uuid] != have[uuid] {
				running[uuid]()
				s.forget(uuid)
				delete(running, uuid)
				delete(have, uuid)
			}
		}
		for _, g := range want {
			if running[g.UUID] != nil {
				continue
			}
			one, end := context.WithCancel(ctx)
			before, done := ended[g.UUID], make(chan struct{})
			running[g.UUID], have[g.UUID], ended[g.UUID] = end, g, done
			wg.Go(func() {
				defer close(done)
				if before != nil {
					<-before // it takes away the directory that this one uses
				}
				s.keep(one, g)
			})
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
		}
	}
}

// forget ends what is known of a daemon that is no longer wanted: another one may be, on the same GPU.
func (s *Supervisor) forget(uuid string) {
	s.mu.Lock()
	delete(s.serving, uuid)
	delete(s.reasons, uuid)
	s.mu.Unlock()
	s.cfg.Changed()
}

// keep restarts one GPU's daemon until ctx ends, then takes everything of it away.
func (s *Supervisor) keep(ctx context.Context, g GPU) {
	pause := s.cfg.Pause
	for ctx.Err() == nil {
		began := time.Now()
		err := s.serve(ctx, g)
		if ctx.Err() != nil {
			break
		}
		s.note(g.UUID, err)
		if time.Since(began) > maxPause {
			pause = s.cfg.Pause
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, maxPause)
	}
	if err := s.remove(g.UUID); err != nil {
		s.cfg.Log.Error("MPS directory stays", "gpu", g.UUID, "error", err)
	}
	s.forget(g.UUID) // an answer that was on its way may have said that it serves
}

// ensure makes a GPU's directories. Clients of any user reach the sockets and the shared memory, whatever our umask.
func (s *Supervisor) ensure(uuid string) (string, error) {
	dir := filepath.Join(s.cfg.Dir, uuid)
	shm := filepath.Join(dir, "shm")
	for _, d := range []string{filepath.Join(dir, "pipe"), shm, filepath.Join(dir, "log")} {
		if err := os.MkdirAll(d, 0o755); err != nil { //nolint:gosec // clients of any user
			return "", err
		}
	}
	if err := os.Chmod(filepath.Join(dir, "pipe"), 0o755); err != nil { //nolint:gosec // clients of any user
		return "", err
	}
	var own, parent unix.Stat_t
	if err := errors.Join(unix.Stat(shm, &own), unix.Stat(dir, &parent)); err != nil {
		return "", err
	}
	if own.Dev == parent.Dev {
		if err := unix.Mount("berth-mps", shm, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777,size=256m"); err != nil {
			return "", &os.PathError{Op: "mount tmpfs", Path: shm, Err: err}
		}
	}
	return dir, nil
}

// remove takes a GPU's directories away.
func (s *Supervisor) remove(uuid string) error {
	dir := filepath.Join(s.cfg.Dir, uuid)
	if err := unix.Unmount(filepath.Join(dir, "shm"), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return &os.PathError{Op: "unmount", Path: dir, Err: err}
	}
	return os.RemoveAll(dir)
}
