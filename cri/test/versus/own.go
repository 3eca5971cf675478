package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-project/berth/cri/internal/cgroup"
	"github.com/berth-project/berth/cri/internal/shims"
	v1 "github.com/berth-project/berth/proto/shim/v1"
)

// pod is the one in which all containers of both sides run: net, ipc and uts are its own.
const pod = "versus"

// seccomp is the name of the one profile.
const seccomp = "sha256:versus"

// own is the executor in a supervisor, driven as the daemon drives it.
type own struct {
	c      config
	b      *bundle
	pool   *shims.Pool
	groups *cgroup.Layout
	ends   chan v1.Exited
}

func newOwn(ctx context.Context, c config, b *bundle) (*own, error) {
	groups, err := cgroup.Detect()
	if err != nil {
		return nil, err
	}
	o := &own{c: c, b: b, groups: groups, ends: make(chan v1.Exited, 1)}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	o.pool = shims.New(shims.Config{Binary: c.shim, Dir: filepath.Join(c.work, "shims"), PodsPer: 64, Cgroups: groups, Group: c.group + "/shims"},
		log, func(x v1.Exited) { o.ends <- x }, func(v1.OOM) {})
	s, _, err := b.spec("first", c.group+"/first")
	if err != nil {
		return nil, err
	}
	profile, err := json.Marshal(s.Linux.Seccomp)
	if err != nil {
		return nil, err
	}
	o.pool.AddProfile(seccomp, profile)
	if err := groups.Ensure(c.group + "/berth"); err != nil {
		return nil, err
	}
	return o, o.pool.RunPod(ctx, v1.RunPod{ID: pod, Namespaces: []string{"net", "ipc", "uts"}, Hostname: pod}, nil)
}

func (o *own) close() { o.pool.Close() }

// end takes the pod away.
func (o *own) end(ctx context.Context) error { return o.pool.RemovePod(ctx, pod) }

// life implements side. The group with its limits and devices is the daemon's part of a creation, so it is timed too.
func (o *own) life(ctx context.Context, number int, s *steps) error {
	id := fmt.Sprintf("own-%d", number)
	group := o.c.group + "/berth/" + id
	sp, join, err := o.b.spec(id, group)
	if err != nil {
		return err
	}
	devices := sp.Linux.Resources.Devices
	sp.Linux.Seccomp = nil // the supervisor has it
	raw, err := json.Marshal(sp)
	if err != nil {
		return err
	}
	dir := filepath.Join(o.b.dir, "own", id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := timed(&s.Create, func() error { return o.group(group, sp.Linux.Resources, devices) }); err != nil {
		return err
	}
	req := v1.Start{
		Container: v1.Container{ID: id, Pod: pod, LogDir: dir, LogName: "0.log", OOMFile: o.groups.OOMFile(group), ExitFile: filepath.Join(dir, "exit")},
		Spec:      raw, Join: join, Seccomp: seccomp, Rootfs: v1.Rootfs{Path: o.b.rootfs},
	}
	if err := timed(&s.Start, func() error { return o.start(ctx, req, group) }); err != nil {
		return err
	}
	select {
	case x := <-o.ends:
		if x.Exit.Code != 0 || x.Container != id {
			return fmt.Errorf("container %s ended with %+v", x.Container, x.Exit)
		}
	case <-time.After(time.Minute):
		return errors.New("its end is not told")
	}
	err = timed(&s.Delete, func() error { return errors.Join(o.pool.Delete(ctx, id), o.groups.Remove(group)) })
	return errors.Join(err, os.RemoveAll(dir))
}

func (o *own) group(group string, r *specs.LinuxResources, devices []specs.LinuxDeviceCgroup) error {
	return errors.Join(o.groups.Ensure(group), o.groups.Set(group, r), o.groups.SetDevices(group, devices))
}

func (o *own) start(ctx context.Context, req v1.Start, group string) error {
	handles, err := o.groups.Open(group, group)
	if err != nil {
		return err
	}
	defer handles.Close()
	_, err = o.pool.Start(ctx, req, handles)
	return err
}
