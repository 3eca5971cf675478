package discovery

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth/deviceplugin/internal/health"
	"github.com/berth-project/berth/deviceplugin/internal/inventory"
	"github.com/berth-project/berth/proto/errs"
)

// slow is a source that hangs on one GPU until it is let go.
type slow struct {
	broken
	gate chan struct{}
}

func (s slow) Sample(_ context.Context, to Target) (health.Sample, error) {
	if to.UUID == "hangs" {
		<-s.gate
	}
	return health.Sample{Temperature: 40}, nil
}

func TestGuard(t *testing.T) {
	s := slow{broken{"slow", errors.New("none")}, make(chan struct{})}
	g := NewGuard(s, Limits{Inventory: time.Second, Sample: 50 * time.Millisecond})
	start := time.Now()
	_, err := g.Sample(t.Context(), Target{UUID: "hangs"})
	if errs.Of(err) != errs.DeadlineExceeded || time.Since(start) > time.Second {
		t.Fatal(err, time.Since(start))
	}
	start = time.Now()
	if _, err := g.Sample(t.Context(), Target{UUID: "hangs"}); !strings.Contains(err.Error(), "has not ended") || time.Since(start) > 40*time.Millisecond {
		t.Error("a second call goes in after the first:", err)
	}
	for range 10 {
		if v, err := g.Sample(t.Context(), Target{UUID: "well"}); err != nil || v.Temperature != 40 {
			t.Error(v, err)
		}
	}
	close(s.gate)
	for end := time.Now().Add(time.Second); ; time.Sleep(time.Millisecond) {
		if _, err := g.Sample(t.Context(), Target{UUID: "hangs"}); err == nil {
			break
		} else if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	if _, err := g.Inventory(t.Context()); err == nil || g.Name() != "slow" {
		t.Error(err)
	}
}

// list is a source that lists, or not.
type list struct {
	broken
	node *inventory.Node
}

func (l *list) Inventory(context.Context) (*inventory.Node, error) {
	if l.node == nil {
		return nil, l.err
	}
	return l.node, nil
}

func TestEither(t *testing.T) {
	one := &list{broken{"first", errors.New("no library")}, nil}
	two := &list{broken{"second", errors.New("no driver")}, nil}
	e := Either(one, two)
	if _, err := e.Inventory(t.Context()); err == nil || !strings.Contains(err.Error(), "no library") || !strings.Contains(err.Error(), "no driver") {
		t.Error(err)
	}
	two.node = &inventory.Node{}
	if _, err := e.Inventory(t.Context()); err != nil || e.Name() != "second" {
		t.Error(e.Name(), err)
	}
	one.node = &inventory.Node{}
	if _, err := e.Inventory(t.Context()); err != nil || e.Name() != "first" {
		t.Error(e.Name(), err)
	}
	if _, err := e.Sample(t.Context(), Target{UUID: "x"}); err == nil || err.Error() != "no library" {
		t.Error(err)
	}
	one.node = nil // it listed once: what it knew is not exchanged for what the second can tell
	if n, err := e.Inventory(t.Context()); err == nil || n != nil || e.Name() != "first" {
		t.Error(e.Name(), n, err)
	}
}
