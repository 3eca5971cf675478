// Package fake is a full model of a node with GPUs, read from a YAML profile: what a driver would list, what each
// look would find, and faults on command. The file is read again when it changes, so that whoever edits it plugs,
// partitions and breaks GPUs under a running program.
//
// It is a [discovery.Source] for tests and for `berth-gpu --fake`, and imports no driver.
package fake

import (
	"context"
	"embed"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/berth-project/berth/deviceplugin/internal/discovery"
	"github.com/berth-project/berth/deviceplugin/internal/driver"
	"github.com/berth-project/berth/deviceplugin/internal/health"
	"github.com/berth-project/berth/deviceplugin/internal/inventory"
	"github.com/berth-project/berth/proto/errs"
)

//go:embed profiles/*.yaml
var profiles embed.FS

// Profile is a node.
type Profile struct {
	// Origin says where the figures are from: a recording of a machine, or data sheets.
	Origin string           `json:"origin"`
	Driver inventory.Driver `json:"driver"`
	// Majors are what /proc/devices would say.
	Majors driver.Majors `json:"majors"`
	GPUs   []GPU         `json:"gpus"`
	// Fabric is how all pairs of GPUs are connected, Links where some are otherwise, by index.
	Fabric Fabric  `json:"fabric"`
	Links  []Pair  `json:"links,omitempty"`
	Faults []Fault `json:"faults,omitempty"`
	// Hang is how long the list of GPUs takes ("30s").
	Hang string `json:"hang,omitempty"`

	all *inventory.Node // spelled out, when it is read
}

// GPU is a GPU, or Count alike whose index, minor, bus and uuid count on.
type GPU struct {
	inventory.GPU `json:",inline"`
	Count         int `json:"count,omitempty"`
}

// Fabric connects.
type Fabric struct {
	Path    inventory.Path `json:"path,omitempty"`
	NVLinks int            `json:"nvlinks,omitempty"`
}

// Pair connects two.
type Pair struct {
	A      int `json:"a"`
	B      int `json:"b"`
	Fabric `json:",inline"`
}

// Fault is what is wrong with one GPU, by its index.
type Fault struct {
	GPU int `json:"gpu"`
	// Gone takes it out of the list, as unplugging does.
	Gone bool `json:"gone,omitempty"`
	// Hang is how long each look takes ("30s").
	Hang string `json:"hang,omitempty"`
	// XID is reported each time Times rises.
	XID   int `json:"xid,omitempty"`
	Times int `json:"times,omitempty"`
	// Sample is what a look finds.
	Sample health.Sample `json:"sample,omitempty"`
}

// Source is the model as a discovery.Source.
type Source struct {
	path string

	mu    sync.Mutex
	stamp string
	prof  *Profile
	told  map[string]int // GPU and XID -> times that were reported
}

var _ discovery.Source = (*Source)(nil)

// Names lists the profiles that are built in.
func Names() []string {
	entries, err := fs.ReadDir(profiles, "profiles")
	if err != nil {
		return nil
	}
	var names []string
	for _, e := range entries {
		names = append(names, strings.TrimSuffix(e.Name(), ".yaml"))
	}
	return names
}

// Open reads a profile: a file if the name has a slash or ends in .yaml, else one that is built in.
func Open(name string) (*Source, error) {
	s := &Source{path: name, told: map[string]int{}}
	if !strings.Contains(name, "/") && filepath.Ext(name) != ".yaml" {
		s.path = ""
		b, err := profiles.ReadFile(path.Join("profiles", name+".yaml"))
		if err != nil {
			return nil, errs.NotFound.Errorf("profile %q: have %s, or the path of a file", name, strings.Join(Names(), ", "))
		}
		if s.prof, err = Parse(b); err != nil {
			return nil, fmt.Errorf("profile %s: %w", name, err)
		}
		return s, nil
	}
	_, err := s.profile()
	return s, err
}

// Parse reads a profile strictly: unknown keys are errors.
func Parse(b []byte) (*Profile, error) {
	var p Profile
	if err := yaml.UnmarshalStrict(b, &p); err != nil {
		return nil, errs.InvalidArgument.Wrap(err)
	}
	for _, f := range p.Faults {
		if f.Hang != "" {
			if _, err := time.ParseDuration(f.Hang); err != nil {
				return nil, errs.InvalidArgument.Errorf("faults: gpu %d: hang: %w", f.GPU, err)
			}
		}
	}
	if p.Hang != "" {
		if _, err := time.ParseDuration(p.Hang); err != nil {
			return nil, errs.InvalidArgument.Errorf("hang: %w", err)
		}
	}
	p.all = p.spell()
	return &p, nil
}

// node is a copy of what the profile spells out.
func (p *Profile) node() *inventory.Node {
	n := &inventory.Node{Driver: p.all.Driver, GPUs: slices.Clone(p.all.GPUs), Links: slices.Clone(p.all.Links)}
	for i := range n.GPUs {
		n.GPUs[i].Instances = slices.Clone(n.GPUs[i].Instances)
		n.GPUs[i].DRM = slices.Clone(n.GPUs[i].DRM)
	}
	return n
}

// profile is the profile as the file is now. One that became bad is refused and the last good one holds: half a
// file is read whenever an editor writes it.
func (s *Source) profile() (*Profile, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.path == "" {
		return s.prof, nil
	}
	fi, err := os.Stat(s.path)
	if err != nil {
		return s.prof, fmt.Errorf("profile: %w", err)
	}
	stamp := fmt.Sprint(fi.ModTime().UnixNano(), fi.Size())
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		stamp += fmt.Sprint(" ", st.Ino) // an editor that renames
	}
	if stamp == s.stamp {
		return s.prof, nil
	}
	b, err := os.ReadFile(s.path)
	if err != nil {
		return nil, fmt.Errorf("profile: %w", err)
	}
	p, err := Parse(b)
	if err != nil {
		if s.prof != nil {
			return s.prof, nil
		}
		return nil, fmt.Errorf("profile %s: %w", s.path, err)
	}
	s.prof, s.stamp = p, stamp
	return p, nil
}

// Name implements discovery.Source.
func (s *Source) Name() string { return "fake" }

// Majors are the profile's, in place of /proc/devices.
func (s *Source) Majors() (driver.Majors, error) {
	p, err := s.profile()
	if err != nil {
		return driver.Majors{}, err
	}
	return p.Majors, nil
}

// Inventory implements discovery.Source.
func (s *Source) Inventory(ctx context.Context) (*inventory.Node, error) {
	p, err := s.profile()
	if err != nil {
		return nil, err
	}
	if err := sleep(ctx, p.Hang); err != nil {
		return nil, err
	}
	n := p.node()
	n.GPUs = slices.DeleteFunc(n.GPUs, func(g inventory.GPU) bool {
		return slices.ContainsFunc(p.Faults, func(f Fault) bool { return f.GPU == g.Index && f.Gone })
	})
	return n, nil
}

// spell makes GPUs and links of templates.
func (p *Profile) spell() *inventory.Node {
	n := &inventory.Node{Driver: p.Driver}
	for _, t := range p.GPUs {
		for range max(t.Count, 1) {
			n.GPUs = append(n.GPUs, t.at(len(n.GPUs)))
		}
	}
	for i := range n.GPUs {
		for j := range i {
			l := inventory.Link{A: n.GPUs[j].UUID, B: n.GPUs[i].UUID, Path: p.Fabric.Path, NVLinks: p.Fabric.NVLinks}
			for _, o := range p.Links {
				if o.A == j && o.B == i || o.A == i && o.B == j {
					l.Path, l.NVLinks = o.Path, o.NVLinks
				}
			}
			if l.Path == "" {
				l.Path = inventory.PathSystem
			}
			n.Links = append(n.Links, l)
		}
	}
	return n
}

// at is the template's GPU number i of the node.
func (t GPU) at(i int) inventory.GPU {
	g := t.GPU
	g.Index = i
	if t.Count > 1 || g.UUID == "" {
		g.Minor = i
		g.Bus = fmt.Sprintf("0000:%02x:00.0", 0x10+i*8)
		g.UUID = fmt.Sprintf("GPU-be27f000-0000-4000-8000-%012x", i)
		if t.Count > 4 {
			g.NUMA = i * 2 / t.Count
		}
		g.DRM = []string{fmt.Sprintf("card%d", i+1), fmt.Sprintf("renderD%d", 128+i)}
	}
	g.Instances = slices.Clone(t.Instances)
	for k := range g.Instances {
		in := &g.Instances[k]
		if in.UUID == "" {
			in.UUID = fmt.Sprintf("MIG-be27f000-0000-4000-8%03x-%06x%06x", i, in.GI, in.CI)
		}
		if in.GICap == 0 {
			in.GICap, in.CICap = inventory.DefaultCap(g.Minor, in.GI, in.CI)
		}
	}
	return g
}

// Sample implements discovery.Source.
func (s *Source) Sample(ctx context.Context, t discovery.Target) (health.Sample, error) {
	p, g, err := s.find(t)
	if err != nil {
		return health.Sample{}, err
	}
	sample := health.Sample{Temperature: 40, Power: 90}
	for _, f := range p.Faults {
		if f.GPU != g.Index {
			continue
		}
		if err := sleep(ctx, f.Hang); err != nil {
			return health.Sample{}, err
		}
		if f.Sample != (health.Sample{}) {
			sample = f.Sample
		}
	}
	return sample, nil
}

func (s *Source) find(t discovery.Target) (*Profile, *inventory.GPU, error) {
	p, err := s.profile()
	if err != nil {
		return nil, nil, err
	}
	g := p.all.GPU(t.UUID)
	if g == nil || g.Bus != t.Bus || slices.ContainsFunc(p.Faults, func(f Fault) bool { return f.GPU == g.Index && f.Gone }) {
		return nil, nil, errs.NotFound.Errorf("there is no GPU %s at %s", t.UUID, t.Bus)
	}
	return p, g, nil
}

// Events implements discovery.Source: it looks at the profile five times a second.
func (s *Source) Events(ctx context.Context) ([]health.Event, error) {
	for {
		p, err := s.profile()
		if err != nil {
			return nil, err
		}
		if all := s.news(p); len(all) > 0 {
			return all, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func (s *Source) news(p *Profile) (all []health.Event) {
	n := p.all
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range p.Faults {
		if f.XID == 0 || f.GPU < 0 || f.GPU >= len(n.GPUs) {
			continue
		}
		key := fmt.Sprint(f.GPU, f.XID)
		for ; s.told[key] < f.Times; s.told[key]++ {
			all = append(all, health.Event{GPU: n.GPUs[f.GPU].UUID, XID: f.XID})
		}
	}
	return all
}

// Processes implements discovery.Source: nobody computes on a model.
func (s *Source) Processes(_ context.Context, t discovery.Target) ([]discovery.Process, error) {
	_, _, err := s.find(t)
	return nil, err
}

// sleep is a driver that hangs: it does not look at ctx until it is done, as a call into a library does not.
func sleep(ctx context.Context, text string) error {
	if text == "" {
		return nil
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		return err
	}
	time.Sleep(d)
	return ctx.Err()
}
