// Package agent is berth-netd: it takes the desired state of the pod network from a source, has it compiled, makes the
// kernel hold it, and tells the container runtime when pods can be served. Everything it does is level-triggered: one
// loop compares what shall be with what is, after any event, and carries out the difference.
//
//	source ──fabric──▶ accept ──▶ compile ──▶ apply ──▶ CNI configuration, status
//	                     │           ▲          ▲
//	              refused: the last  │          └── kernel: links, routes, neighbours, table
//	              good state stays   └── speaker: learned routes
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/berth-project/berth/cni/internal/datapath"
	"github.com/berth-project/berth/cni/internal/fabric"
	"github.com/berth-project/berth/cni/internal/netdconf"
	"github.com/berth-project/berth/cni/internal/offload"
	"github.com/berth-project/berth/cni/internal/overlay"
	"github.com/berth-project/berth/cni/internal/udptun"
	"github.com/berth-project/berth/internal/failpoint"
	"github.com/berth-project/berth/internal/lockfile"
)

// Source delivers fabrics.
type Source interface {
	// Run delivers the state at once and whenever it changes, until ctx ends. What cannot be used it delivers as an
	// error, and goes on. It returns an error only if it can never deliver again.
	Run(ctx context.Context, deliver func(Delivery)) error
	// Name says what it is, for people.
	Name() string
}

// Delivery is a fabric, or why there is none.
type Delivery struct {
	Fabric *fabric.Fabric
	Err    error
	// Remarks are what of the source was left out, each with its reason; the rest is good.
	Remarks []string
	// Names are those of the VXLAN devices; zero: Berth's own.
	Names overlay.Names
}

// Speaker learns routes from others and tells them ours. All methods may be called at any time from one goroutine.
type Speaker interface {
	// Set says what the speaker is to be and to say; it reads password files, and returns without a word to any peer.
	// What cannot be had is left out, each with a remark; after an error everything is as it was. The same again is
	// cheap and changes nothing: that is how what was left out is tried again, and a new password found.
	Set(f *fabric.Fabric, self string) (remarks []string, err error)
	// Changed has a value when the learned routes may have changed.
	Changed() <-chan struct{}
	// Learned are the routes now.
	Learned() []overlay.Learned
	// Status is shown as it is, in JSON.
	Status() any
	// Run serves until ctx ends.
	Run(ctx context.Context) error
}

// Agent is the daemon. Use [New], then [Agent.Run].
type Agent struct {
	conf    netdconf.Config
	log     *slog.Logger
	source  Source
	speaker Speaker
	version string
	udp     udptun.Tunnel
	// test is there while [Agent.Run] is.
	test *offload.Test

	deliveries chan Delivery
	kernelSays chan datapath.Event

	// mu guards what the status socket reads.
	mu   sync.Mutex
	live live
}

// live is the agent's state. Only the loop writes it.
type live struct {
	fabric  *fabric.Fabric
	names   overlay.Names
	plan    *overlay.Plan
	started time.Time
	// from says where the fabric came from, refused why the newest was not taken.
	from, refused string
	remarks       []string
	taken         time.Time
	// unspoken is what of the fabric the speaker left out, spoken when it was last told.
	unspoken []string
	spoken   time.Time
	// unsaved: the snapshot is not of this fabric, for it could not be written. Only the loop reads it.
	unsaved bool
	// applied is when the kernel last held the plan; failed why it does not.
	applied time.Time
	failed  string
	ready   bool
	cniFile string
	history []Change
	counts  counts
}

// counts are for the metrics.
type counts struct {
	applies, failures, changes, refusals, overruns uint64
	lastSeconds                                    float64
}

// Change is one thing that was done, and why.
type Change struct {
	Time time.Time `json:"time"`
	Why  string    `json:"why"`
	What []string  `json:"what"`
	// More counts what was done beyond What, which holds at most 20.
	More int    `json:"more,omitempty"`
	Err  string `json:"error,omitempty"`
}

// New makes an agent. speaker may be nil: pools of mode bgp then have no routes.
func New(conf netdconf.Config, source Source, speaker Speaker, log *slog.Logger, version string) *Agent {
	if speaker == nil {
		speaker = silent{}
	}
	return &Agent{
		conf: conf, log: log, source: source, speaker: speaker, version: version,
		deliveries: make(chan Delivery, 1), kernelSays: make(chan datapath.Event, 64),
	}
}

// silent is the speaker of a node without one.
type silent struct{}

func (silent) Set(*fabric.Fabric, string) ([]string, error) { return nil, nil }
func (silent) Changed() <-chan struct{}                     { return nil }
func (silent) Learned() []overlay.Learned                   { return nil }
func (silent) Status() any                                  { return nil }
func (silent) Run(ctx context.Context) error                { <-ctx.Done(); return nil }

// Run serves until ctx ends, and leaves everything in the kernel as it is. notify gets what systemd wants to hear.
func (a *Agent) Run(ctx context.Context, notify func(string)) error {
	if err := a.prepare(); err != nil {
		return err
	}
	lock, err := lockfile.Take(filepath.Join(a.conf.State, "lock"))
	if err != nil {
		return fmt.Errorf("another berth-netd serves this node: %w", err)
	}
	defer lock.Close() //nolint:errcheck // ends with the process
	kernel, err := datapath.Open()
	if err != nil {
		return err
	}
	defer kernel.Close() //nolint:errcheck // nothing buffered
	if a.test, err = offload.New(filepath.Join(a.conf.State, "checksums"), a.log); err != nil {
		a.log.Warn("earlier verdicts are lost, and found again", "error", err)
	}
	l, cni, err := a.listen()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	part := func(name string, run func(context.Context) error) {
		wg.Go(func() {
			if err := run(ctx); err != nil && ctx.Err() == nil {
				cancel(fmt.Errorf("%s: %w", name, err))
			}
		})
	}
	watching := make(chan struct{})
	part("kernel", func(ctx context.Context) error {
		return kernel.Watch(ctx, func() { close(watching) }, func(e datapath.Event) { a.tell(ctx, e) })
	})
	select { // what changes after the first look must not be missed
	case <-watching:
	case <-ctx.Done():
	}
	part("status", func(ctx context.Context) error { return a.serve(ctx, l) })
	if cni != nil {
		part("CNI", cni.Run)
	}
	part("speaker", a.speaker.Run)
	part("self-test", a.test.Run)
	part(a.source.Name(), func(ctx context.Context) error { return a.source.Run(ctx, func(d Delivery) { a.deliver(ctx, d) }) })
	a.loop(ctx, kernel, notify)
	notify("STOPPING=1")
	wg.Wait()
	if err := a.udp.Close(); err != nil {
		a.log.Warn("closing the tunnel", "error", err)
	}
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// prepare makes the directories and reads the failpoints of a test.
func (a *Agent) prepare() error {
	for _, dir := range []string{a.conf.State, a.conf.Root} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	return failpoint.Load(filepath.Join(a.conf.State, "failpoints"))
}

func (a *Agent) deliver(ctx context.Context, d Delivery) {
	select {
	case a.deliveries <- d:
	case <-ctx.Done():
	}
}

func (a *Agent) tell(ctx context.Context, e datapath.Event) {
	select {
	case a.kernelSays <- e:
	case <-ctx.Done():
	}
}
