package pod

import (
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	v1 "github.com/berth-project/berth/proto/shim/v1"
)

// Container is one container of a pod. Its CRI state is derived from its times, never stored.
//
//	            CreateContainer          StartContainer             the process ends, reboot
//	(creating) ────────────────▶ CREATED ──────────────▶ RUNNING ──────────────────────────▶ EXITED
//	                                │ start failed: reason StartError, code 128                ▲  │ RemoveContainer
//	                                └──────────────────────────────────────────────────────────┘  ▼ gone
type Container struct {
	ID, PodID string
	Config    *cri.ContainerConfig // never changed, but for its resources: see State
	ImageID   string               // "sha256:…"
	CreatedAt time.Time
	User      *cri.LinuxContainerUser
	Stop      unix.Signal // first signal of StopContainer
	StopSet   bool        // the config or the image chose it
	LogPath   string      // absolute, or ""

	op          sync.Mutex    // one life-cycle operation at a time; held across I/O
	done        chan struct{} // closed when EXITED
	cleaned     chan struct{} // closed when its group is removed and its supervisor forgot it
	spec        *specs.Spec   // without seccomp
	raw         []byte        // spec as JSON, from Create to Start
	seccomp     string        // digest of the profile, or ""
	join        []string
	pidOf       string
	volumes     map[string]string            // image volumes: image id by holder; "" if an earlier build has recorded none
	loaderCache []byte                       // merged ld.so.cache, within Create
	grouped     *cri.LinuxContainerResources // the limits that its group has; nil: it has no group. Guarded by op
	barred      bool                         // it is being stopped or removed: no start any more. Guarded by op

	mu   sync.Mutex
	st   ContainerState
	left []string // groups of ended execs that something runs in which they have left behind
}

// ContainerState is what changes in a container's life.
type ContainerState struct {
	StartedAt  time.Time                    `json:"startedAt,omitzero"`
	FinishedAt time.Time                    `json:"finishedAt,omitzero"`
	Pid        int                          `json:"pid,omitempty"`
	Pipes      map[string]uint64            `json:"pipes,omitempty"` // inodes of the output, by handle
	Exit       v1.Exit                      `json:"exit"`
	Reason     string                       `json:"reason,omitempty"`
	Message    string                       `json:"message,omitempty"`
	Resources  *cri.LinuxContainerResources `json:"-"`
	Stopping   bool                         `json:"-"`
}

// CRI is the state the CRI knows.
func (s ContainerState) CRI() cri.ContainerState {
	switch {
	case !s.FinishedAt.IsZero():
		return cri.ContainerState_CONTAINER_EXITED
	case !s.StartedAt.IsZero():
		return cri.ContainerState_CONTAINER_RUNNING
	}
	return cri.ContainerState_CONTAINER_CREATED
}

// State is a copy of the container's present state. Resources must not be changed.
func (c *Container) State() ContainerState {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.st
}

func (c *Container) set(change func(*ContainerState)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(&c.st)
}

// Done is closed when the container has ended.
func (c *Container) Done() <-chan struct{} { return c.done }

const containerKind = "container"

type containerRecord struct {
	Version   int               `json:"version"`
	ID        string            `json:"id"`
	PodID     string            `json:"podID"`
	BootID    string            `json:"bootID"`
	ImageID   string            `json:"imageID"`
	CreatedAt time.Time         `json:"createdAt"`
	Config    []byte            `json:"config"`              // CRI ContainerConfig, protobuf
	Resources []byte            `json:"resources,omitempty"` // CRI LinuxContainerResources, protobuf
	User      []byte            `json:"user,omitempty"`      // CRI LinuxContainerUser, protobuf
	Stop      int               `json:"stop"`
	StopSet   bool              `json:"stopSet,omitempty"`
	LogPath   string            `json:"logPath,omitempty"`
	Seccomp   string            `json:"seccomp,omitempty"`
	Join      []string          `json:"join,omitempty"`
	PidOf     string            `json:"pidOf,omitempty"`
	Images    []string          `json:"images,omitempty"`  // holders of image volumes, which earlier builds release
	Volumes   map[string]string `json:"volumes,omitempty"` // image ids of image volumes, by holder; earlier builds have none
	State     ContainerState    `json:"state"`
}

func (m *Manager) saveContainer(c *Container) error {
	st := c.State()
	config, err := proto.Marshal(c.Config)
	if err != nil {
		return err
	}
	resources, err := proto.Marshal(st.Resources)
	if err != nil {
		return err
	}
	user, err := proto.Marshal(c.User)
	if err != nil {
		return err
	}
	b, err := json.Marshal(containerRecord{
		Version: recordVersion, ID: c.ID, PodID: c.PodID, BootID: m.cfg.Features.BootID, ImageID: c.ImageID,
		CreatedAt: c.CreatedAt, Config: config, Resources: resources, User: user, Stop: int(c.Stop), StopSet: c.StopSet,
		LogPath: c.LogPath, Seccomp: c.seccomp, Join: c.join, PidOf: c.pidOf,
		Images: slices.Sorted(maps.Keys(c.volumes)), Volumes: c.volumes, State: st,
	})
	if err != nil {
		return err
	}
	return m.records.Put(containerKind, c.ID, b)
}

func decodeContainer(b []byte) (*Container, string, error) {
	var r containerRecord
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, "", err
	}
	if r.Version > recordVersion {
		return nil, "", fmt.Errorf("%w: version %d, this daemon knows %d", errNewer, r.Version, recordVersion)
	}
	c := &Container{
		ID: r.ID, PodID: r.PodID, ImageID: r.ImageID, CreatedAt: r.CreatedAt, Config: &cri.ContainerConfig{},
		User: &cri.LinuxContainerUser{}, Stop: unix.Signal(r.Stop), StopSet: r.StopSet, LogPath: r.LogPath,
		seccomp: r.Seccomp, join: r.Join, pidOf: r.PidOf, volumes: map[string]string{},
		done: make(chan struct{}), cleaned: make(chan struct{}), st: r.State,
	}
	for _, h := range r.Images {
		c.volumes[h] = r.Volumes[h]
	}
	c.st.Resources = &cri.LinuxContainerResources{}
	for _, part := range []struct {
		raw []byte
		to  proto.Message
	}{{r.Config, c.Config}, {r.Resources, c.st.Resources}, {r.User, c.User}} {
		if err := proto.Unmarshal(part.raw, part.to); err != nil {
			return nil, "", err
		}
	}
	return c, r.BootID, nil
}

// dir holds a container's writable layer and its spec; it survives a reboot.
func (m *Manager) containerDir(id string) string { return filepath.Join(m.cfg.Root, "containers", id) }

// exitFile is where the supervisor writes the container's end.
func (m *Manager) exitFile(id string) string { return filepath.Join(m.cfg.State, "exits", id) }

// WritableLayer is the directory of what a container has written, for measuring it.
func (m *Manager) WritableLayer(id string) string { return filepath.Join(m.containerDir(id), "upper") }

// Group is a container's cgroup.
func (m *Manager) Group(c *Container) (string, error) {
	p, err := m.Pod(c.PodID)
	if err != nil {
		return "", err
	}
	base, err := m.base(p)
	return base + "/" + c.ID, err
}
