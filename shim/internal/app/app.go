// Package app puts the shim together: the listening socket it inherits, the launcher's thread, the loops that
// collect children and copy output, and the supervisor.
package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/internal/failpoint"
	v1 "github.com/berth-project/berth/proto/shim/v1"
	"github.com/berth-project/berth/shim/internal/executor"
	"github.com/berth-project/berth/shim/internal/launch"
	"github.com/berth-project/berth/shim/internal/oci"
	"github.com/berth-project/berth/shim/internal/reap"
	"github.com/berth-project/berth/shim/internal/stdio"
	"github.com/berth-project/berth/shim/internal/supervisor"
)

// Config is all a shim is told.
type Config struct {
	Dir      string   // the shim's own directory, for the failpoint file
	Listener *os.File // the listening socket
	Log      *slog.Logger
	Build    string
}

// The shim keeps its memory small: it lives as long as its pods do.
const (
	gcPercent   = 100
	memoryLimit = 24 << 20         // above it the collector works harder; nothing fails
	idleAfter   = 10 * time.Second // without a request the freed memory goes back to the kernel
)

// shim is the running program.
type shim struct {
	cfg    Config
	sup    *supervisor.Supervisor
	reaper *reap.Reaper
	poller *stdio.Poller
	wg     sync.WaitGroup
	active chan struct{} // a connection or a request came
}

// Run serves until ctx ends, or until the shim is drained and empty.
func Run(ctx context.Context, cfg Config) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := errors.Join(shelter(), becomeSupervisor()); err != nil {
		return err
	}
	if err := failpoint.Load(cfg.Dir + "/failpoints"); err != nil {
		return err
	}
	sh := &shim{cfg: cfg, reaper: reap.New(), active: make(chan struct{}, 1)}
	defer sh.wg.Wait()
	defer cancel()
	native, err := sh.start(ctx)
	if err != nil {
		return err
	}
	sh.sup, err = supervisor.New(supervisor.Config{
		Runtime: native, Reaper: sh.reaper, Poller: sh.poller, Log: cfg.Log, Build: cfg.Build, Empty: cancel,
	})
	if err != nil {
		return err
	}
	sh.wg.Go(func() { sh.signals(ctx, cancel) })
	sh.wg.Go(func() { sh.tidy(ctx) })
	return sh.accept(ctx)
}

// becomeSupervisor sets the attributes of the process: parent of orphans, and closed to ptrace and /proc readers.
func becomeSupervisor() error {
	runtime.GOMAXPROCS(min(2, runtime.NumCPU()))
	debug.SetGCPercent(gcPercent)
	debug.SetMemoryLimit(memoryLimit)
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become a subreaper: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("become undumpable: %w", err)
	}
	unix.Umask(0o022)
	return nil
}

// start starts the loops.
func (sh *shim) start(ctx context.Context) (*supervisor.Native, error) {
	launcher, err := launch.New(sh.reaper)
	if err != nil {
		return nil, err
	}
	if sh.poller, err = stdio.NewPoller(); err != nil {
		return nil, err
	}
	ready := make(chan struct{})
	failed := make(chan error, 1)
	sh.wg.Go(func() {
		if err := launcher.Run(ctx, func() { close(ready) }); err != nil {
			failed <- err
		}
	})
	select {
	case <-ready:
	case err := <-failed:
		return nil, err
	}
	sh.wg.Go(func() { sh.reaper.Run(ctx) })
	sh.wg.Go(func() {
		if err := sh.poller.Run(ctx); err != nil {
			sh.cfg.Log.Error("poller", "err", err)
		}
	})
	ex, err := executor.New(launcher)
	if err != nil {
		return nil, err
	}
	programs, err := oci.New(launcher, sh.reaper)
	if err != nil {
		return nil, err
	}
	return &supervisor.Native{Executor: ex, OCI: programs}, nil
}

// accept serves every connection until the listener is closed.
func (sh *shim) accept(ctx context.Context) error {
	l, err := net.FileListener(sh.cfg.Listener)
	if err != nil {
		return fmt.Errorf("the inherited descriptor is not a listening socket: %w", err)
	}
	_ = sh.cfg.Listener.Close()
	if ul, ok := l.(*net.UnixListener); ok {
		ul.SetUnlinkOnClose(false)
	}
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			sh.cfg.Log.Error("accept", "err", err)
			time.Sleep(100 * time.Millisecond) // out of descriptors: the next try may find one
			continue
		}
		uc, ok := c.(*net.UnixConn)
		if !ok {
			_ = c.Close()
			continue
		}
		sh.wg.Go(func() { sh.serve(ctx, uc) })
	}
}

func (sh *shim) serve(ctx context.Context, uc *net.UnixConn) {
	defer uc.Close() //nolint:errcheck // its end has been served
	defer context.AfterFunc(ctx, func() { _ = uc.Close() })()
	conn, err := v1.NewConn(uc)
	if err == nil {
		err = sh.sup.Serve(ctx, conn)
	}
	if err != nil && ctx.Err() == nil {
		sh.cfg.Log.Warn("connection ended", "err", err)
	}
	select {
	case sh.active <- struct{}{}:
	default:
	}
}

// signals keeps the usual signals from ending a shim that has pods; SIGTERM ends an empty one.
func (sh *shim) signals(ctx context.Context, cancel func()) {
	ch := make(chan os.Signal, 4)
	signal.Notify(ch, syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGPIPE, syscall.SIGUSR1, syscall.SIGUSR2)
	defer signal.Stop(ch)
	for {
		select {
		case sig := <-ch:
			switch {
			case sig == syscall.SIGTERM && !sh.sup.Busy():
				cancel()
				return
			case sig == syscall.SIGTERM:
				sh.cfg.Log.Warn("SIGTERM ignored: there are pods; Drain and remove them, or use SIGKILL: the containers go on")
			}
		case <-ctx.Done():
			return
		}
	}
}

// tidy gives freed memory back once things have been quiet for a while.
func (sh *shim) tidy(ctx context.Context) {
	t := time.NewTicker(idleAfter)
	defer t.Stop()
	var last uint64
	var ms runtime.MemStats
	for {
		select {
		case <-t.C:
			runtime.ReadMemStats(&ms)
			if ms.Mallocs-last > 1000 { // something went on: wait for a quiet period
				last = ms.Mallocs
				continue
			}
			if ms.HeapIdle-ms.HeapReleased > 256<<10 {
				debug.FreeOSMemory()
			}
		case <-ctx.Done():
			return
		}
	}
}
