package peering

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"reflect"
	"time"

	"github.com/berth-project/berth/cni/internal/bgp"
	"github.com/berth-project/berth/cni/internal/bgp/speaker"
	"github.com/berth-project/berth/cni/internal/fabric"
	"github.com/berth-project/berth/cni/internal/overlay"
	"github.com/berth-project/berth/internal/atomicfile"
)

// Options are what a Speaker needs.
type Options struct {
	// Program is berth-bgp, which runs as UID.
	Program string
	UID     uint32
	// Kept is a file for what was learned, so that an agent that starts anew takes no route away before its peers have
	// said theirs again. It is of no use after a reboot.
	Kept string
	Log  *slog.Logger
}

// Speaker is [agent.Speaker] over the supervisor of berth-bgp. Use [New].
type Speaker struct {
	opt   Options
	inner inner
	saved []byte
	last  *bgp.Config // what inner was set to; nil: nothing yet
	// keys are the passwords as they were last read, by path: a file that is away for a moment, or half written, ends no
	// session. They are nowhere but in memory.
	keys map[string]bgp.Secret
}

// inner is what is used of [speaker.Speaker].
type inner interface {
	Set(c bgp.Config) error
	Changed() <-chan struct{}
	Status() bgp.Status
	Routes() []bgp.Route
	Run(ctx context.Context) error
}

// kept is the file's content.
type kept struct {
	Boot   string      `json:"boot"`
	Routes []bgp.Route `json:"routes"`
}

const bootFile = "/proc/sys/kernel/random/boot_id"

// New makes a speaker and reads what an earlier agent's had learned.
func New(o Options) *Speaker {
	routes, err := load(o.Kept)
	if err != nil {
		o.Log.Warn("what was learned by BGP before is not known", "error", err)
	}
	return &Speaker{opt: o, keys: map[string]bgp.Secret{}, inner: speaker.New(speaker.Options{
		Program: o.Program, UID: o.UID, GID: o.UID, Log: o.Log, Kept: routes,
	})}
}

// load returns nil where there was no speaker in this boot or it is too long ago.
func load(path string) ([]bgp.Route, error) {
	b, err := atomicfile.ReadSealed(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	boot, berr := os.ReadFile(bootFile)
	if err := errors.Join(err, berr); err != nil {
		return nil, err
	}
	var k kept
	if err := json.Unmarshal(b, &k); err != nil {
		return nil, err
	}
	fi, err := os.Stat(path)
	if err != nil || k.Boot != string(bytes.TrimSpace(boot)) || time.Since(fi.ModTime()) > defaultRestart {
		return nil, err
	}
	return append([]bgp.Route{}, k.Routes...), nil
}

// Set implements [agent.Speaker]. Password files are read each time; what comes out as it was is not set again.
func (s *Speaker) Set(f *fabric.Fabric, self string) (remarks []string, err error) {
	var old []string
	c, remarks, err := compile(f, self, func(path string) (bgp.Secret, error) {
		key, err := readSecret(path)
		if before, known := s.keys[path]; err != nil && known {
			old = append(old, fmt.Sprintf("bgp: the password read before stays in use: %v", err))
			return before, nil
		}
		if err == nil {
			s.keys[path] = key
		}
		return key, err
	})
	remarks = append(remarks, old...)
	if err != nil || s.last != nil && reflect.DeepEqual(c, *s.last) {
		return remarks, err
	}
	if err := s.inner.Set(c); err != nil {
		return remarks, err
	}
	s.last = &c
	return remarks, nil
}

// Changed implements [agent.Speaker].
func (s *Speaker) Changed() <-chan struct{} { return s.inner.Changed() }

// Status implements [agent.Speaker].
func (s *Speaker) Status() any { return s.inner.Status() }

// Learned implements [agent.Speaker]; it also saves what it returns.
func (s *Speaker) Learned() []overlay.Learned {
	routes := s.inner.Routes()
	s.save(routes)
	out := make([]overlay.Learned, 0, len(routes))
	for _, r := range routes {
		l := overlay.Learned{Prefix: r.Prefix}
		for _, p := range r.Paths {
			l.NextHops = append(l.NextHops, p.NextHop)
		}
		out = append(out, l)
	}
	return out
}

func (s *Speaker) save(routes []bgp.Route) {
	now, err := json.Marshal(routes)
	if err != nil || bytes.Equal(now, s.saved) {
		return
	}
	boot, err := os.ReadFile(bootFile)
	var b []byte
	if err == nil {
		b, err = json.Marshal(kept{Boot: string(bytes.TrimSpace(boot)), Routes: routes})
	}
	if err == nil {
		err = atomicfile.WriteSealed(s.opt.Kept, b, 0o600)
	}
	if err != nil {
		s.opt.Log.Warn("what BGP learned is not saved: a restart of the agent would take its routes away for a moment", "error", err)
		return
	}
	s.saved = now
}

// Run implements [agent.Speaker]. While it runs, the file is touched, so that its age says how long nobody has spoken.
func (s *Speaker) Run(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(defaultRestart / 8)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case now := <-tick.C:
				if err := os.Chtimes(s.opt.Kept, now, now); err != nil && !errors.Is(err, fs.ErrNotExist) {
					s.opt.Log.Debug("touching the learned routes", "error", err)
				}
			}
		}
	}()
	err := s.inner.Run(ctx)
	<-done
	return err
}
