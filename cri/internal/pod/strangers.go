package pod

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-project/berth/cri/internal/cgroup"
	"github.com/berth-project/berth/cri/internal/rootfs"
	"github.com/berth-project/berth/cri/internal/shims"
	"github.com/berth-project/berth/proto/errs"
	v1 "github.com/berth-project/berth/proto/shim/v1"
)

// endStrangers ends what is here without a record: what a daemon that died in the middle of a removal has left, and what
// was described by a record that is damaged. Left alone it would run where nobody sees it, beside the one that the
// kubelet starts in its place.
func (m *Manager) endStrangers(ctx context.Context, found shims.Found) {
	units := map[string]bool{} // of pods without a record
	defer func() {
		if err := m.removeStrayScopes(ctx, units); err != nil {
			m.cfg.Log.Error("units of strangers stay", "error", err)
		}
	}()
	for id := range found.Containers {
		if _, err := m.Container(id); err == nil {
			continue
		}
		m.cfg.Log.Warn("container without a record is ended", "container", id)
		if pod := m.strangersPod(id); pod != "" {
			units[pod] = true
		}
		if err := m.endStranger(ctx, id); err != nil {
			m.cfg.Log.Error("stranger not ended", "container", id, "error", err)
		}
	}
	for id := range found.Pods {
		if _, err := m.Pod(id); err == nil {
			continue
		}
		m.cfg.Log.Warn("pod without a record is released", "pod", id)
		units[id] = true
		if err := errors.Join(m.shims.RemovePod(ctx, id), m.network.Unpin(id), m.removeFiles(id)); err != nil {
			m.cfg.Log.Error("stranger not released", "pod", id, "error", err)
		}
	}
}

// addLeftovers adds to what supervisors hold the containers of which nothing but a directory is left: they never ran, or
// have ended. Before any request is served, because a Create under way has a directory and no record too.
func (m *Manager) addLeftovers(found shims.Found) {
	ents, err := os.ReadDir(m.containerDir(""))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		m.cfg.Log.Error("directories of containers are not looked at", "error", err)
	}
	for _, e := range ents {
		if _, known := found.Containers[e.Name()]; !known {
			found.Containers[e.Name()] = v1.ContainerState{ID: e.Name()}
		}
	}
}

// endStranger kills a container that no record describes, with all that runs in its group, and removes what is left.
func (m *Manager) endStranger(ctx context.Context, id string) error {
	err := m.shims.Signal(id, 9)
	if errors.Is(err, errs.NotFound) { // no supervisor has it: nothing of it runs but what is in its group
		err = nil
	}
	err = errors.Join(err, m.awaitStranger(ctx, id), m.endGroup(id), m.shims.Delete(ctx, id))
	mounts, gerr := filepath.Glob(filepath.Join(m.cfg.State, "images", id+"-*"))
	err = errors.Join(err, gerr)
	for _, dir := range mounts {
		err = errors.Join(err, rootfs.Unmount(dir))
	}
	m.images.Release(id)
	return errors.Join(err, m.trash(m.containerDir(id)), m.removeExit(id))
}

// endGroup kills and removes the group of a container whose pod or whose record is lost: its spec still names it. One
// without a spec was never given a group.
func (m *Manager) endGroup(id string) error {
	group, err := m.specGroup(id)
	if err != nil || group == "" {
		return err
	}
	return errors.Join(m.cfg.Cgroups.Kill(group), m.cfg.Cgroups.Remove(group))
}

// strangersPod is the pod in whose unit a container's group is, by its spec, if no record describes that pod.
func (m *Manager) strangersPod(container string) string {
	group, err := m.specGroup(container)
	if err != nil {
		return "" // endGroup says so
	}
	id, scoped := podOfUnit(path.Base(path.Dir(group)))
	if _, err := m.Pod(id); !scoped || err == nil {
		return ""
	}
	return id
}

// specGroup is the group that a container's spec names, or "" if there is no spec.
func (m *Manager) specGroup(id string) (string, error) {
	b, err := os.ReadFile(filepath.Join(m.containerDir(id), specFile))
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	var s specs.Spec
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err != nil {
		return "", fmt.Errorf("cgroup of container %s: %w", id, err)
	}
	if s.Linux == nil || path.Base(s.Linux.CgroupsPath) != id {
		return "", fmt.Errorf("cgroup of container %s: its spec names none of its own", id)
	}
	return cgroup.Clean(s.Linux.CgroupsPath)
}

func (m *Manager) awaitStranger(ctx context.Context, id string) error {
	for range 100 {
		if m.shims.Dead(id) {
			return nil
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return fmt.Errorf("container %s does not die", id)
}
