package pod

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/cri/internal/apparmor"
	"github.com/berth-project/berth/cri/internal/image"
	"github.com/berth-project/berth/cri/internal/spec"
	"github.com/berth-project/berth/internal/failpoint"
	"github.com/berth-project/berth/proto/errs"
)

const createLimit = time.Minute

var (
	failCreateRecorded = failpoint.New("cri.create.after_record")
	failCreatePrepared = failpoint.New("cri.create.after_prepare")
)

// Create prepares a container; nothing of it runs until Start. Retries join or find the first call's result, as
// with Run.
func (m *Manager) Create(ctx context.Context, podID string, config *cri.ContainerConfig) (string, error) {
	p, err := m.Pod(podID)
	if err != nil {
		return "", err
	}
	md := config.GetMetadata()
	if md.GetName() == "" {
		return "", errs.InvalidArgument.Errorf("config.metadata.name must be set")
	}
	k := fmt.Sprintf("container %s (attempt %d) of pod %s", md.GetName(), md.GetAttempt(), p.ID)
	return m.join(ctx, k, createLimit, func(ctx context.Context) (string, error) {
		for _, old := range m.ContainersOf(p.ID) {
			if omd := old.Config.GetMetadata(); omd.GetName() == md.GetName() && omd.GetAttempt() == md.GetAttempt() {
				if proto.Equal(old.Config, config) && old.State().CRI() == cri.ContainerState_CONTAINER_CREATED {
					return old.ID, nil
				}
				return "", errs.AlreadyExists.Errorf("%s exists as %s: remove it or raise the attempt", k, old.ID)
			}
		}
		return m.create(ctx, p, config)
	})
}

func (m *Manager) create(ctx context.Context, p *Pod, config *cri.ContainerConfig) (id string, err error) {
	start := time.Now()
	if !p.State().Ready {
		return "", errs.FailedPrecondition.Errorf("pod %s is not ready: it is stopped", p.ID)
	}
	img, err := m.images.Get(config.GetImage().GetImage())
	if err != nil {
		return "", fmt.Errorf("image %q: %w", config.GetImage().GetImage(), err)
	}
	c := &Container{
		ID: newID(), PodID: p.ID, Config: config, ImageID: img.ID, CreatedAt: m.cfg.Now(),
		done: make(chan struct{}), cleaned: make(chan struct{}),
	}
	c.st.Resources = config.GetLinux().GetResources()
	if c.st.Resources == nil {
		c.st.Resources = &cri.LinuxContainerResources{}
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.discardContainer(c))
		}
	}()
	if c.LogPath, err = logPath(p.Config.GetLogDirectory(), config.GetLogPath()); err != nil {
		return "", err
	}
	root, err := m.images.Use(c.ID, img.ID)
	if err != nil {
		return "", fmt.Errorf("image %q: %w", config.GetImage().GetImage(), err)
	}
	if err := m.compile(ctx, c, p, img, root.Lower); err != nil {
		return "", err
	}
	if err := errors.Join(m.saveContainer(c), failCreateRecorded.Hit()); err != nil {
		return "", err
	}
	if err := errors.Join(m.prepare(c), failCreatePrepared.Hit()); err != nil {
		return "", err
	}
	m.mu.Lock()
	m.containers[c.ID] = c
	m.mu.Unlock()
	m.groupAhead(c, p)
	m.publish(cri.ContainerEventType_CONTAINER_CREATED_EVENT, p.ID, c.ID)
	if m.cfg.Timeline != nil {
		m.cfg.Timeline(p.ID, Phase{Name: "create " + config.GetMetadata().GetName(), Start: start, Took: time.Since(start)})
	}
	return c.ID, nil
}

// logPath joins the pod's log directory and the container's file, which must stay inside.
func logPath(dir, name string) (string, error) {
	if dir == "" || name == "" {
		return "", nil
	}
	if !filepath.IsAbs(dir) {
		return "", errs.InvalidArgument.Errorf("log_directory %q is not absolute", dir)
	}
	if !filepath.IsLocal(name) || strings.ContainsAny(name, "\x00\n") {
		return "", errs.InvalidArgument.Errorf("log_path %q leaves the pod's log directory", name)
	}
	return filepath.Join(dir, name), nil
}

// compile resolves the user and makes the OCI spec.
func (m *Manager) compile(ctx context.Context, c *Container, p *Pod, img *image.Image, lower []string) error {
	accounts, err := m.accounts.of(img.ID, lower)
	if err != nil {
		return fmt.Errorf("accounts of image %s: %w", img.ID, err)
	}
	sc := c.Config.GetLinux().GetSecurityContext()
	user, err := spec.ResolveUser(sc, img.Config.Config.User, accounts)
	if err != nil {
		return err
	}
	c.User = &cri.LinuxContainerUser{Uid: int64(user.UID), Gid: int64(user.GID)}
	for _, g := range user.Groups {
		c.User.SupplementalGroups = append(c.User.SupplementalGroups, int64(g))
	}
	c.Stop, c.StopSet = stopSignal(c.Config, img.Config.Config.StopSignal)
	group, err := m.Group(c)
	if err != nil {
		return err
	}
	node, err := os.Hostname()
	if err != nil {
		return err
	}
	in := spec.Input{
		ID: c.ID, PodID: p.ID, Sandbox: p.Config, Container: c.Config, Image: img.Config.Config, User: user, Hostname: node,
		CgroupPath: group, CgroupNS: !sc.GetPrivileged(), Files: m.files(p), LastCap: m.cfg.Features.LastCap,
		AppArmor: m.cfg.Features.AppArmor, SELinux: m.cfg.Features.SELinux, Default: m.profiles.runtimeDefault, Seccomp: readProfile,
		Loaded: apparmor.Loaded, AppArmorDefault: m.cfg.Features.AppArmorDefault,
	}
	if err := m.hostPaths(ctx, c, &in); err != nil {
		return err
	}
	out, err := spec.Compile(in)
	if err != nil {
		return err
	}
	if err := m.inject(c, out.Spec, lower); err != nil {
		return err
	}
	c.join, c.pidOf = out.Join, out.PidOf
	if c.seccomp, err = m.profiles.digest(out.Spec.Linux.Seccomp, m.keepProfile); err != nil {
		return err
	}
	out.Spec.Linux.Seccomp = nil
	c.spec = out.Spec
	return nil
}

// hostPaths looks up what the spec needs of the host's file system: devices, image volumes, mount sources.
func (m *Manager) hostPaths(ctx context.Context, c *Container, in *spec.Input) error {
	if in.Container.GetLinux().GetSecurityContext().GetPrivileged() {
		var err error
		if in.HostDevices, err = devicesBelow("/dev", "/dev"); err != nil {
			return err
		}
	}
	in.Devices = map[string][]spec.Device{}
	for _, d := range in.Container.GetDevices() {
		all, err := devicesBelow(d.GetHostPath(), d.GetContainerPath())
		if err != nil {
			return errs.InvalidArgument.Errorf("devices: %w", err)
		}
		in.Devices[d.GetHostPath()] = all
	}
	in.Images = map[int]string{}
	for i, mt := range in.Container.GetMounts() {
		if mt.GetImage().GetImage() != "" {
			dir, err := m.imageVolume(c, i, mt)
			if err != nil {
				return err
			}
			in.Images[i] = dir
			continue
		}
		if err := m.paths.ensure(ctx, mt.GetHostPath()); err != nil {
			return fmt.Errorf("mounts[%d].host_path: %w", i, err)
		}
	}
	return nil
}

func readProfile(path string) (string, error) {
	const limit = 1 << 20
	fi, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if !fi.Mode().IsRegular() || fi.Size() > limit {
		return "", fmt.Errorf("not a regular file of at most %d bytes", limit)
	}
	b, err := os.ReadFile(path) //nolint:gosec // named by the kubelet
	return string(b), err
}

// prepare makes the writable layer and writes the spec, which Exec after a restart of the daemon needs again.
func (m *Manager) prepare(c *Container) (err error) {
	dir := m.containerDir(c.ID)
	if err := os.MkdirAll(dir, 0o711); err != nil { //nolint:gosec // overlay in a user namespace walks through it
		return err
	}
	for _, d := range []string{"upper", "work"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil && !errors.Is(err, os.ErrExist) { //nolint:gosec // the rootfs's own mode
			return err
		}
	}
	if c.loaderCache != nil {
		if err := os.WriteFile(filepath.Join(dir, "ld.so.cache"), c.loaderCache, 0o644); err != nil { //nolint:gosec // every user in the container reads it
			return err
		}
		c.loaderCache = nil
	}
	if c.raw, err = json.Marshal(c.spec); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, specFile), c.raw, 0o600)
}

// discardContainer takes back what Create made.
func (m *Manager) discardContainer(c *Container) error {
	err := errors.Join(m.unmountImages(c), m.trash(m.containerDir(c.ID)), m.records.Delete(containerKind, c.ID))
	m.images.Release(c.ID)
	for h := range c.volumes {
		m.images.Release(h)
	}
	return err
}
