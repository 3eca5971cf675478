// Package ocispecs collects the OCI specs that berth-cri makes while a suite runs against it, and reduces each to its
// shape: what a container may do and see, without the names, addresses and commands that differ from run to run. The
// shapes are the corpus of the oracle (shim/test), which runs every one of them on berth-shim and on runc.
package ocispecs

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Shape is one distinct spec.
type Shape struct {
	Join  []string    `json:"join,omitempty"`  // kinds of the pod's namespaces that the container enters
	PidOf bool        `json:"pidOf,omitempty"` // it enters another container's pid namespace
	Spec  *specs.Spec `json:"spec"`
}

// Key is the shape's identity.
func (s *Shape) Key() (string, error) {
	b, err := json.Marshal(s)
	return string(b), err
}

// Collector watches a daemon's directories.
type Collector struct {
	root string // the daemon's root: containers/ID/spec.json, records/container/ID
	seen map[string]bool
	all  map[string]*Shape
	stop chan struct{}
	done chan error
}

// poll is far less than a container lives in any suite.
const poll = 3 * time.Millisecond

// Start begins to collect from a daemon with this root directory.
func Start(root string) *Collector {
	c := &Collector{root: root, seen: map[string]bool{}, all: map[string]*Shape{}, stop: make(chan struct{}), done: make(chan error, 1)}
	go func() { c.done <- c.run() }()
	return c
}

// Stop ends the collection and returns the distinct shapes, in a stable order.
func (c *Collector) Stop() ([]*Shape, error) {
	close(c.stop)
	err := <-c.done
	keys := make([]string, 0, len(c.all))
	for k := range c.all {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	out := make([]*Shape, 0, len(keys))
	for _, k := range keys {
		out = append(out, c.all[k])
	}
	return out, err
}

func (c *Collector) run() error {
	t := time.NewTicker(poll)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-c.stop:
			return nil
		}
		ents, err := os.ReadDir(filepath.Join(c.root, "containers"))
		if err != nil && !os.IsNotExist(err) {
			return err
		}
		for _, e := range ents {
			if c.seen[e.Name()] {
				continue
			}
			s, err := c.read(e.Name())
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errPartial) {
				continue // half written, or gone already
			}
			if err != nil {
				return fmt.Errorf("container %s: %w", e.Name(), err)
			}
			k, err := s.Key()
			if err != nil {
				return err
			}
			c.seen[e.Name()], c.all[k] = true, s
		}
	}
}

// errPartial is a spec that is being written.
var errPartial = errors.New("not whole yet")

func (c *Collector) read(id string) (*Shape, error) {
	b, err := os.ReadFile(filepath.Join(c.root, "containers", id, "spec.json"))
	if err != nil {
		return nil, err
	}
	var sp specs.Spec
	if err := json.Unmarshal(b, &sp); err != nil {
		return nil, errors.Join(errPartial, err)
	}
	record, err := os.ReadFile(filepath.Join(c.root, "records", "container", id))
	if err != nil {
		return nil, err
	}
	var r struct {
		Join  []string `json:"join"`
		PidOf string   `json:"pidOf"`
	}
	_, body, ok := bytes.Cut(record, []byte("{")) // behind the seal
	if !ok {
		return nil, fmt.Errorf("record of %s: no JSON", id)
	}
	if err := json.NewDecoder(bytes.NewReader(append([]byte("{"), body...))).Decode(&r); err != nil {
		return nil, err
	}
	return reduce(&sp, r.Join, r.PidOf != "")
}

// usual are the targets that every container has; other volumes are numbered.
var usual = []string{"/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/shm", "/dev/termination-log"}

// reduce is the shape of a spec. It takes the spec over.
func reduce(sp *specs.Spec, join []string, pidOf bool) (*Shape, error) {
	slices.Sort(join)
	sp.Hostname, sp.Domainname, sp.Annotations, sp.Hooks = "", "", nil, nil
	sp.Process.Args, sp.Process.CommandLine = nil, ""
	sp.Process.Env = slices.DeleteFunc(sp.Process.Env, func(e string) bool {
		return !strings.HasPrefix(e, "PATH=") && !strings.HasPrefix(e, "TERM=") && !strings.HasPrefix(e, "HOME=")
	})
	sp.Root.Path = ""
	sp.Linux.CgroupsPath, sp.Linux.Resources = "", nil // the daemon's to apply
	if score := sp.Process.OOMScoreAdj; score != nil && *score != 0 {
		*score = 500 // the kubelet computes it from the node's memory
	}
	maps := [][]specs.LinuxIDMapping{sp.Linux.UIDMappings, sp.Linux.GIDMappings}
	for _, m := range sp.Mounts {
		maps = append(maps, m.UIDMappings, m.GIDMappings)
	}
	for _, maps := range maps {
		for i := range maps {
			maps[i].HostID = 200_000 // the kubelet hands out ranges as it likes
		}
	}
	slices.SortStableFunc(sp.Mounts, func(a, b specs.Mount) int { // the kubelet lists a pod's volumes in any order
		if isBind(a) && isBind(b) {
			return strings.Compare(a.Destination, b.Destination)
		}
		return cmp.Compare(map[bool]int{true: 1}[isBind(a)], map[bool]int{true: 1}[isBind(b)])
	})
	volume := 0
	for i := range sp.Mounts {
		m := &sp.Mounts[i]
		if !isBind(*m) {
			continue
		}
		var err error
		if m.Source, err = class(m.Source); err != nil {
			return nil, err
		}
		if !slices.Contains(usual, m.Destination) {
			volume++
			m.Destination = fmt.Sprintf("/volume%d", volume)
		}
	}
	// A privileged container has every device of its node; these few stand for them.
	sp.Linux.Devices = slices.DeleteFunc(sp.Linux.Devices, func(d specs.LinuxDevice) bool {
		return !slices.Contains([]string{"/dev/null", "/dev/zero", "/dev/full", "/dev/fuse"}, d.Path)
	})
	slices.SortFunc(sp.Linux.Devices, func(a, b specs.LinuxDevice) int { return strings.Compare(a.Path, b.Path) })
	return &Shape{Join: join, PidOf: pidOf, Spec: sp}, nil
}

func isBind(m specs.Mount) bool {
	return m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
}

// class is what a mount's source is: "dir", "file", or the path of a device.
func class(path string) (string, error) {
	fi, err := os.Stat(path)
	switch {
	case err != nil:
		return "", err // its pod is on its way out
	case fi.Mode().IsRegular():
		return "file", nil
	case fi.IsDir():
		return "dir", nil
	}
	return path, nil
}
