package pod

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"path/filepath"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/cri/internal/cgroup"
	"github.com/berth-project/berth/cri/internal/systemd"
)

// A scoped pod's unit is called by the pod's id.
const (
	unitPrefix = "cri-berth-"
	unitSuffix = ".scope"
)

// Parent is the cgroup that the kubelet made for a pod, or the one of pods without: with systemd a slice's path.
func (m *Manager) Parent(p *Pod) (string, error) { return m.parent(p.Config, p.Scoped) }

func (m *Manager) parent(c *cri.PodSandboxConfig, scoped bool) (string, error) {
	name := c.GetLinux().GetCgroupParent()
	if name == "" {
		name = m.cfg.DefaultPod
	}
	if scoped {
		return cgroup.ExpandSlice(name)
	}
	return cgroup.Clean(name)
}

// base is the group below which those of a pod's containers are: its scope, which systemd makes, or its parent.
func (m *Manager) base(p *Pod) (string, error) {
	parent, err := m.Parent(p)
	if err != nil || !p.Scoped {
		return parent, err
	}
	return path.Join(parent, unitPrefix+p.ID+unitSuffix), nil
}

func (m *Manager) scope(p *Pod) (systemd.Scope, error) {
	parent, err := m.Parent(p)
	md := p.Config.GetMetadata()
	return systemd.Scope{
		Slice: path.Base(parent), Unit: unitPrefix + p.ID + unitSuffix, Description: "pod " + md.GetNamespace() + "/" + md.GetName(),
	}, err
}

// ensureScope sees that a scoped pod has its unit; of another it says nothing.
func (m *Manager) ensureScope(ctx context.Context, p *Pod) error {
	if !p.Scoped || m.cfg.Scopes == nil {
		return nil
	}
	s, err := m.scope(p)
	if err != nil {
		return err
	}
	return m.cfg.Scopes.Ensure(ctx, s)
}

// scopeAhead makes a pod's unit beside the work that needs none. The function it returns waits for it; it may be called
// more than once.
func (m *Manager) scopeAhead(ctx context.Context, p *Pod) func() error {
	if !p.Scoped {
		return func() error { return nil }
	}
	var err error
	done := make(chan struct{})
	m.work.Add(1)
	go func() {
		defer m.work.Done()
		defer close(done)
		err = m.phase(p.ID, "scope", func() error { return m.ensureScope(ctx, p) })
	}()
	return func() error { <-done; return err }
}

// removeGroups ends what is left in a pod's own groups and removes them.
func (m *Manager) removeGroups(ctx context.Context, p *Pod) error {
	base, err := m.base(p)
	if err != nil {
		return nil //nolint:nilerr // a parent that cannot be: refused before anything was made
	}
	if p.Scoped && m.cfg.Scopes != nil {
		s, err := m.scope(p)
		if err != nil {
			return err
		}
		return m.cfg.Scopes.Remove(ctx, s)
	}
	group := base + "/" + p.ID
	if p.Scoped { // systemd lets go of an empty scope by itself
		group = base
	}
	return errors.Join(m.cfg.Cgroups.Kill(group), m.cfg.Cgroups.Remove(group))
}

// removeStrayScopes removes the units of pods without a record, by the pods' ids. Where they lie only the tree can tell.
func (m *Manager) removeStrayScopes(ctx context.Context, ids map[string]bool) error {
	if m.cfg.Scopes == nil || len(ids) == 0 {
		return nil
	}
	var all []error
	err := filepath.WalkDir(m.cfg.Cgroups.Unified, func(dir string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil //nolint:nilerr // a group that vanishes
		}
		id, ours := podOfUnit(d.Name())
		if !ours {
			return nil
		}
		if ids[id] {
			s := systemd.Scope{Slice: filepath.Base(filepath.Dir(dir)), Unit: d.Name()}
			all = append(all, m.cfg.Scopes.Remove(ctx, s))
		}
		return fs.SkipDir
	})
	return errors.Join(append(all, err)...)
}

// podOfUnit is the pod that a unit's name says it belongs to.
func podOfUnit(unit string) (id string, ok bool) {
	id, ok = strings.CutPrefix(unit, unitPrefix)
	if !ok {
		return "", false
	}
	return strings.CutSuffix(id, unitSuffix)
}
