// Package rig starts the runtimes that are compared, each with the same images and in a cgroup of its own, and
// accounts for what they use. A side's group is /berth-bench/NAME with daemon, shims and pods below it, so that the
// CPU time of everything a side ever forked, containers and exec'ed plugins included, is in one counter.
package rig

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/berth-project/berth/e2e/harness"
)

// Root is the group of everything.
const Root = "/berth-bench"

// Mark is part of the name of everything that a rig makes.
const Mark = "berth-bench"

// Env says where the programs are.
type Env struct {
	Bin, Tools string // absolute
	Hosts      string // hosts.toml tree of the registry
}

// Side is one runtime.
type Side struct {
	Name   string
	Client *harness.Client
	Group  string // its cgroup
	Lab    *harness.Lab

	socket string
	argv   []string
	env    []string
	conf   string // configuration file, written
	proc   *harness.Process
	// agentArgv starts the node's network agent, where the side has one; agent is it.
	agentArgv []string
	agent     *harness.Process
}

// Dir is where a side called name keeps its data.
func Dir(name string) string { return "/var/lib/" + Mark + name }

func (e Env) lab(name, pods string) (*harness.Lab, error) {
	l := harness.NewLab("bench"+name, e.Bin, e.Tools)
	l.Dir, l.Run, l.Pods, l.Own = Dir(name), "/run/"+Mark+name, pods, Root+"/"+name+"/shims"
	if err := os.MkdirAll(l.Dir, 0o711); err != nil {
		return nil, err
	}
	err := os.MkdirAll(l.Run, 0o711)
	if os.Symlink(e.Hosts, l.Hosts()) != nil {
		_, serr := os.Stat(l.Hosts())
		err = errors.Join(err, serr)
	}
	return l, err
}

func side(name string, l *harness.Lab) (*Side, error) {
	s := &Side{Name: name, Group: Root + "/" + name, Lab: l}
	var err error
	for _, g := range []string{Root, s.Group, s.Group + "/daemon", s.Group + "/shims", s.Pods()} {
		err = errors.Join(err, harness.MakeCgroup(g))
	}
	return s, err
}

// Berth prepares a Berth. conflist is empty for its own network, or one with the upstream plugins.
func (e Env) Berth(name, pods string, upstream bool) (*Side, error) {
	l, err := e.lab(name, pods)
	if err != nil {
		return nil, err
	}
	s, err := side(name, l)
	if err != nil {
		return nil, err
	}
	o := harness.Options{LogLevel: "warn", Netd: !upstream}
	if upstream {
		o.Conflist = l.UpstreamConflist()
	} else if s.agentArgv, err = l.NetdCommand(); err != nil {
		return nil, err
	}
	conf, err := l.WriteConfig(o)
	s.socket, s.conf, s.argv = l.Socket(), conf, []string{filepath.Join(e.Bin, "berth-cri"), "--config", conf}
	return s, err
}

// Containerd prepares a containerd with runc and the upstream plugins.
func (e Env) Containerd(name, pods string) (*Side, error) {
	l, err := e.lab(name, pods)
	if err != nil {
		return nil, err
	}
	s, err := side(name, l)
	if err != nil {
		return nil, err
	}
	conf, err := l.WriteContainerdConfig(harness.Options{})
	s.socket, s.conf, s.env = l.ContainerdSocket(), conf, l.ContainerdEnv()
	s.argv = []string{filepath.Join(e.Tools, "containerd"), "--config", conf}
	return s, err
}

// Start runs the side's daemon inside its group and waits until it answers.
func (s *Side) Start(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	inside := func(argv []string) []string { return append([]string{self, "enter", s.Group + "/daemon"}, argv...) }
	if s.agentArgv != nil {
		if s.agent, err = harness.Start(s.Lab.Logs(), "berth-netd", nil, inside(s.agentArgv)...); err != nil {
			return err
		}
		if err := s.Lab.AwaitNetd(ctx, s.agent); err != nil {
			return err
		}
	}
	argv := inside(s.argv)
	if s.proc, err = harness.Start(s.Lab.Logs(), filepath.Base(s.argv[0]), s.env, argv...); err != nil {
		return err
	}
	if s.Client, err = harness.Dial(s.socket); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return harness.AwaitVersion(ctx, s.socket, s.proc)
}

// Stop ends the side: its daemon, and whatever else is in its groups.
func (s *Side) Stop() error {
	if s.proc == nil {
		return nil
	}
	s.Client.Close()
	err := s.proc.Stop()
	s.proc = nil
	if s.agent != nil {
		err = errors.Join(err, s.agent.Stop())
		s.agent = nil
	}
	for range 100 {
		pids, perr := harness.CgroupPids(s.Group)
		if perr != nil || len(pids) == 0 {
			return errors.Join(err, perr)
		}
		for _, p := range pids {
			_ = syscall.Kill(p, syscall.SIGKILL)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return errors.Join(err, fmt.Errorf("%s: processes outlive their daemon", s.Name))
}

// Pods is the group below which the side's pods are.
func (s *Side) Pods() string { return s.Group + "/pods" }

// Daemons are the process ids of the daemon and, where the side has one, of the network agent.
func (s *Side) Daemons() []int {
	all := []int{s.proc.Pid()}
	if s.agent != nil {
		all = append(all, s.agent.Pid())
	}
	return all
}

// Log is the end of the daemon's log.
func (s *Side) Log() string { return s.proc.Tail(6) }

// CPU is the time that the side has used so far: daemon, shims, plugins, containers.
func (s *Side) CPU() (time.Duration, error) { return harness.CgroupUsage(s.Group) }

// Runtime are the side's own processes: daemon and shims, no container's.
func (s *Side) Runtime() ([]int, error) {
	a, err := harness.CgroupPids(s.Group + "/daemon")
	b, berr := harness.CgroupPids(s.Group + "/shims")
	all := append(a, b...)
	slices.Sort(all) // one may be in either group, by hierarchy
	return slices.Compact(all), errors.Join(err, berr)
}

// Pauses are the pause processes among the side's containers that do not run what the benchmark asked for.
func (s *Side) Pauses() ([]int, error) {
	all, err := harness.CgroupPids(s.Pods())
	var pauses []int
	for _, p := range all {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p))
		if strings.HasPrefix(string(b), "/pause\x00") {
			pauses = append(pauses, p)
		}
	}
	return pauses, err
}
