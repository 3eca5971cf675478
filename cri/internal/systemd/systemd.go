// Package systemd asks systemd for what only it may make where it manages the cgroup tree: one delegated scope per pod,
// and one per supervisor (systemd.scope(5), "Control Group APIs and Delegation" in systemd's own documentation).
//
// What is below a delegated scope is ours alone: systemd never looks there, so a daemon-reload, a daemon-reexec or
// `systemctl set-property` changes no limit and takes no device from a container. A scope lives as long as there is a
// process in it; a program of 75 bytes that sleeps holds it for a pod whose containers come and go (see [Manager.Ensure]).
//
// Requests go over the system bus. Nothing is subscribed to: a process is seen to arrive in its scope by the kernel's own
// word, because a client that wants signals makes systemd send everything that happens on the node.
// The package must not import any other package of the daemon but cgroup.
package systemd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/berth-project/berth/cri/internal/cgroup"
	"github.com/berth-project/berth/proto/errs"
)

const (
	// Bus is where systemd machines have their system bus.
	Bus = "unix:path=/run/dbus/system_bus_socket"
	// booted is there where systemd is process 1 (sd_booted(3)).
	booted = "/run/systemd/system"

	name    = "org.freedesktop.systemd1"
	object  = "/org/freedesktop/systemd1"
	manager = name + ".Manager."
	// callLimit bounds one request. systemd answers within milliseconds; during a daemon-reload of many units it does not
	// for some seconds.
	callLimit = 10 * time.Second
)

// Manager is the connection to systemd. It connects when it is first needed, and again when the connection has ended,
// which it does at a restart of the bus.
type Manager struct {
	bus    string
	groups *cgroup.Layout
	locks  [64]sync.Mutex // by unit

	mu   sync.Mutex
	conn *dbus.Conn
}

// New connects to process 1. FailedPrecondition says what is missing: systemd, its bus, or the unified tree.
func New(ctx context.Context, groups *cgroup.Layout) (*Manager, error) {
	if _, err := os.Stat(booted); err != nil {
		return nil, errs.FailedPrecondition.Errorf("cgroup.driver is systemd, but process 1 is not (%w): set cgroup.driver to cgroupfs, here and in the kubelet", err)
	}
	return connect(ctx, Bus, groups)
}

func connect(ctx context.Context, bus string, groups *cgroup.Layout) (*Manager, error) {
	if groups.Unified == "" {
		return nil, errs.FailedPrecondition.Errorf("cgroup.driver is systemd, which needs the unified tree (cgroup v2, or hybrid): boot with systemd.unified_cgroup_hierarchy=1")
	}
	m := &Manager{bus: bus, groups: groups}
	if _, err := m.Version(ctx); err != nil {
		return nil, errs.FailedPrecondition.Errorf("cgroup.driver is systemd, which does not answer on the system bus: is dbus installed and running? %w", err)
	}
	return m, nil
}

// Close ends the connection. Scopes stay.
func (m *Manager) Close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.conn != nil {
		_ = m.conn.Close() // nothing is under way
		m.conn = nil
	}
}

// Version is systemd's, as it says it ("252.38-1~deb12u1").
func (m *Manager) Version(ctx context.Context) (string, error) {
	var v dbus.Variant
	err := m.call(ctx, "org.freedesktop.DBus.Properties.Get", []any{&v}, name+".Manager", "Version")
	if err != nil {
		return "", err
	}
	s, ok := v.Value().(string)
	if !ok {
		return "", errs.Internal.Errorf("systemd says its version is %s", v)
	}
	return s, nil
}

// call asks process 1 and stores its answer. A connection that has ended is made anew, once; requests are idempotent.
func (m *Manager) call(ctx context.Context, method string, reply []any, args ...any) error {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	for try := 0; ; try++ {
		c, err := m.connection(ctx)
		if err == nil {
			err = c.Object(name, object).CallWithContext(ctx, method, dbus.FlagNoAutoStart, args...).Store(reply...)
		}
		if err == nil {
			return nil
		}
		ended := errors.Is(err, dbus.ErrClosed) || c != nil && !c.Connected()
		if try == 0 && ended && ctx.Err() == nil {
			continue
		}
		return fmt.Errorf("systemd: %s: %w", method, err)
	}
}

func (m *Manager) connection(ctx context.Context) (*dbus.Conn, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.conn != nil && m.conn.Connected() {
		return m.conn, nil
	}
	c, err := dbus.Dial(m.bus) // its own context would end the connection
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.Close() }) // a bus that hangs ends the greeting
	err = errors.Join(c.Auth(nil), ctx.Err())
	if err == nil {
		err = c.Hello()
	}
	if !stop() || err != nil {
		return nil, errors.Join(err, ctx.Err(), c.Close())
	}
	m.conn = c
	return c, nil
}

// is says whether systemd refused with an error of its own of that name, such as "NoSuchUnit".
func is(err error, short string) bool {
	var e dbus.Error
	return errors.As(err, &e) && e.Name == name+"."+short
}
