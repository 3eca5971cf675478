package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/berth-project/berth/e2e/bench/floor"
	"github.com/berth-project/berth/e2e/bench/pods"
	"github.com/berth-project/berth/e2e/bench/rig"
	"github.com/berth-project/berth/e2e/harness"
	"github.com/berth-project/berth/e2e/images"
)

// Dirs are the directories of a run; the first one is everybody's.
func Dirs() []string {
	all := []string{rig.Dir("")}
	for _, name := range []string{berth, berthUpstream, containerd, "pull" + berth, "pull" + containerd} {
		all = append(all, rig.Dir(name))
	}
	return all
}

// The sides.
const (
	berth         = "berth"
	berthUpstream = "berthcni"
	containerd    = "containerd"
)

// stage is what runs during a benchmark.
type stage struct {
	env      rig.Env
	registry *harness.Process
	sides    []*rig.Side
	floor    *floor.Floor
	runners  map[string]*pods.Runner
}

// setUp starts everything; the cage ends it.
func (b *run) setUp(ctx context.Context) error {
	s := &stage{env: rig.Env{Bin: b.Bin, Tools: b.Tools, Hosts: filepath.Join(rig.Dir(""), "hosts")}, runners: map[string]*pods.Runner{}}
	b.stage = s
	wait := filepath.Join(rig.Dir(""), "wait")
	if err := floor.Wait(ctx, wait); err != nil {
		return err
	}
	if err := s.startRegistry(ctx, filepath.Join(b.Bin, "testbox"), wait); err != nil {
		return err
	}
	for _, make := range []func() (*rig.Side, error){
		func() (*rig.Side, error) { return s.env.Berth(berth, "10.81.0.0/16", false) },
		func() (*rig.Side, error) { return s.env.Containerd(containerd, "10.83.0.0/16") },
		func() (*rig.Side, error) { return s.env.Berth(berthUpstream, "10.82.0.0/16", true) },
	} {
		side, err := make()
		if err != nil {
			return err
		}
		if err := s.start(ctx, side); err != nil {
			return fmt.Errorf("%s: %w", side.Name, err)
		}
	}
	var err error
	s.floor, err = floor.Start(ctx, filepath.Join(rig.Dir(""), "floor"), rig.Root+"/floor", wait)
	return err
}

func (s *stage) startRegistry(ctx context.Context, testbox, wait string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	ready := filepath.Join(rig.Dir(""), "registry.ready")
	s.registry, err = harness.Start(filepath.Join(rig.Dir(""), "logs"), "registry", nil, self, "registry", testbox, wait, s.env.Hosts, ready)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	return harness.Until(ctx, 50*time.Millisecond, s.registry, func() error { _, err := os.Stat(ready); return err })
}

// start runs a side, pulls what its pods need and adds it to the stage.
func (s *stage) start(ctx context.Context, side *rig.Side) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := side.Start(ctx); err != nil {
		return err
	}
	s.sides = append(s.sides, side)
	s.runners[side.Name] = &pods.Runner{Client: side.Client, Group: side.Pods(), Dir: filepath.Join(side.Lab.Run, "kubelet")}
	if _, err := pods.Pull(ctx, side.Client, images.BenchPod); err != nil {
		return err
	}
	return harness.Until(ctx, 50*time.Millisecond, nil, func() error { return networkReady(ctx, side) })
}

// pair are the two sides that are compared with each one's own network.
func (s *stage) pair() []*rig.Side { return s.sides[:2] }

// logs is an error with the end of every daemon's log.
func (s *stage) logs() error {
	if s == nil {
		return nil
	}
	var all []error
	for _, side := range s.sides {
		all = append(all, fmt.Errorf("%s's log ends:\n%s", side.Name, side.Log()))
	}
	return errors.Join(all...)
}
