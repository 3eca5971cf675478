package pod

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/cri/internal/shims"
	"github.com/berth-project/berth/internal/failpoint"
	"github.com/berth-project/berth/proto/errs"
	v1 "github.com/berth-project/berth/proto/shim/v1"
)

// A start is bounded: its caller waits for startLimit, and its process has planLimit to its execve; the difference is the
// supervisor's, to see it die or to say that it does not.
const (
	startLimit = 2 * time.Minute
	planLimit  = startLimit - 15*time.Second
)

var (
	failStartGrouped = failpoint.New("cri.start.after_cgroup")
	failStartStarted = failpoint.New("cri.start.after_start")
)

// startErrorCode is the exit code of a container whose process could not be started, as on peers.
const startErrorCode = 128

// Start runs a created container. A second start is a failed precondition. A process that cannot be started makes
// the container EXITED with reason StartError, and the call an error.
func (m *Manager) Start(ctx context.Context, id string) error {
	c, err := m.Container(id)
	if err != nil {
		return err
	}
	_, err = m.join(ctx, "start of container "+c.ID, startLimit, func(ctx context.Context) (string, error) {
		return "", m.start(ctx, c)
	})
	return err
}

func (m *Manager) start(ctx context.Context, c *Container) error {
	c.op.Lock()
	if err := m.startHeld(ctx, c); err != nil {
		c.op.Unlock()
		return err
	}
	m.work.Add(1)
	go func() { // the supervisor knows as much: a daemon that dies before this is on disk hears it from there
		defer m.work.Done()
		defer c.op.Unlock()
		if err := m.saveContainer(c); err != nil {
			m.cfg.Log.Error("start not recorded", "container", c.ID, "error", err)
		}
	}()
	return nil
}

// startHeld is start without its record. The caller holds c.op.
func (m *Manager) startHeld(ctx context.Context, c *Container) error {
	if st := c.State().CRI(); st != cri.ContainerState_CONTAINER_CREATED {
		return errs.FailedPrecondition.Errorf("container %s is %s: only a created container can be started", c.ID, st)
	}
	p, err := m.Pod(c.PodID)
	if err != nil {
		return err
	}
	if !p.State().Ready || c.barred {
		return errs.FailedPrecondition.Errorf("pod %s is not ready: it is stopped", p.ID)
	}
	began := time.Now()
	started, err := m.launch(ctx, c, p)
	if err != nil {
		m.failStart(c, err)
		return fmt.Errorf("start container %s: %w", c.Config.GetMetadata().GetName(), err)
	}
	pipes := m.shims.Pipes(c.ID)
	c.set(func(s *ContainerState) { s.StartedAt, s.Pid, s.Pipes = started.At, started.Pid, pipes })
	if err := failStartStarted.Hit(); err != nil {
		return err
	}
	m.publish(cri.ContainerEventType_CONTAINER_STARTED_EVENT, c.PodID, c.ID)
	if m.cfg.Timeline != nil {
		m.cfg.Timeline(p.ID, Phase{Name: "start " + c.Config.GetMetadata().GetName(), Start: began, Took: time.Since(began)})
	}
	return nil
}

// launch makes the group and has the supervisor start the process in it.
func (m *Manager) launch(ctx context.Context, c *Container, p *Pod) (started shims.Started, err error) {
	group, err := m.Group(c)
	if err != nil {
		return started, err
	}
	if err := m.makeGroup(c, group); err != nil {
		return started, err
	}
	defer func() {
		if err != nil { // nothing of a failed start may run on, whatever its supervisor got done
			c.grouped = nil
			err = errors.Join(err, m.cfg.Cgroups.Kill(group), m.cfg.Cgroups.Remove(group))
		}
	}()
	handles, err := m.cfg.Cgroups.Open(group, group)
	if err != nil {
		return started, err
	}
	defer handles.Close()
	req, err := m.startRequest(c, p, group)
	if err != nil {
		return started, err
	}
	if err := failStartGrouped.Hit(); err != nil {
		return started, err
	}
	s, err := m.shims.Start(ctx, req, handles)
	// The supervisor may still be at a start that a daemon which is dead now asked for. Its cgroup was removed when this
	// daemon came, so that one fails; then this one is taken.
	for end := time.Now().Add(overlapLimit); errors.Is(err, errs.AlreadyExists) && time.Now().Before(end); {
		time.Sleep(overlapLimit / 100)
		s, err = m.shims.Start(ctx, req, handles)
	}
	// A supervisor that died with the request unread, or before it had made a process, has done nothing: its successor does.
	for try := 0; errors.Is(err, errs.Unavailable) && try < 3 && m.cfg.Cgroups.Untouched(group); try++ {
		s, err = m.shims.Start(ctx, req, handles)
	}
	return s, err
}

// overlapLimit is how long a start waits for an earlier daemon's start of the same container to end.
const overlapLimit = 2 * time.Second

func (m *Manager) startRequest(c *Container, p *Pod, group string) (v1.Start, error) {
	raw := c.raw
	if c.raw = nil; raw == nil { // the daemon was restarted since
		var err error
		if raw, err = json.Marshal(c.spec); err != nil {
			return v1.Start{}, err
		}
	}
	img, err := m.images.Use(c.ID, c.ImageID) // the same layers as at Create: they are held
	if err != nil {
		return v1.Start{}, err
	}
	if err := os.MkdirAll(filepath.Dir(m.exitFile(c.ID)), 0o700); err != nil {
		return v1.Start{}, err
	}
	dir := m.containerDir(c.ID)
	req := v1.Start{
		Container: m.static(c, group), Spec: raw, Join: c.join, PidOf: c.pidOf, Seccomp: c.seccomp, Limit: planLimit,
		Rootfs: v1.Rootfs{Lower: img.Lower, Upper: filepath.Join(dir, "upper"), Work: filepath.Join(dir, "work")},
	}
	req.OCI = m.oci(c, p)
	return req, nil
}

// oci is the command line runtime of a pod's handler, or nil for the shim's own executor.
func (m *Manager) oci(c *Container, p *Pod) *v1.OCIRuntime {
	rt, ok := m.cfg.OCI[p.Handler]
	if !ok {
		return nil
	}
	return &v1.OCIRuntime{
		Binary: rt.Binary, Args: rt.Args, Root: filepath.Join(m.cfg.State, "oci", p.Handler),
		Bundle: filepath.Join(m.cfg.State, "bundles", c.ID),
	}
}

// static is what a supervisor must know of a container for its whole life.
func (m *Manager) static(c *Container, group string) v1.Container {
	s := v1.Container{
		ID: c.ID, Pod: c.PodID, Stdin: c.Config.GetStdin(), StdinOnce: c.Config.GetStdinOnce(), Terminal: c.Config.GetTty(),
		OOMFile: m.cfg.Cgroups.OOMFile(group), ExitFile: m.exitFile(c.ID),
	}
	if c.LogPath != "" {
		p, err := m.Pod(c.PodID)
		if err == nil {
			s.LogDir, s.LogName = p.Config.GetLogDirectory(), c.Config.GetLogPath()
		}
	}
	return s
}

func (m *Manager) failStart(c *Container, cause error) {
	now := m.cfg.Now()
	c.set(func(s *ContainerState) {
		s.StartedAt, s.FinishedAt = now, now
		s.Exit = v1.Exit{Code: startErrorCode, At: now}
		s.Reason, s.Message = "StartError", cause.Error()
	})
	close(c.done)
	close(c.cleaned)
	if err := m.saveContainer(c); err != nil {
		m.cfg.Log.Error("container not recorded", "container", c.ID, "error", err)
	}
	m.publish(cri.ContainerEventType_CONTAINER_STOPPED_EVENT, c.PodID, c.ID)
}

// specFile is a container's OCI spec in its directory, the last that Create writes.
const specFile = "spec.json"

// loadSpec reads the spec of a recovered container.
func (m *Manager) loadSpec(c *Container) error {
	b, err := os.ReadFile(filepath.Join(m.containerDir(c.ID), specFile))
	if err != nil {
		return err
	}
	s := &specs.Spec{}
	if err := json.Unmarshal(b, s); err != nil { // half of one, of an interrupted Create
		return err
	}
	c.spec = s
	return nil
}
