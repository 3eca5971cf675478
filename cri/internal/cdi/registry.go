package cdi

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	"sigs.k8s.io/yaml"
	specs "tags.cncf.io/container-device-interface/specs-go"

	"github.com/berth-project/berth/proto/errs"
)

// Registry reads specifications from directories, later ones before earlier ones (CDI, "Specification files"). It
// keeps nothing: a specification is read when a container asks for one of its devices, so that none is ever stale.
type Registry struct {
	dirs []string
}

// New makes a registry of directories; one that is missing holds nothing.
func New(dirs []string) *Registry { return &Registry{dirs: dirs} }

// maxSpec bounds one file: sixteen GPUs with all libraries are 100 KiB.
const maxSpec = 8 << 20

// Resolution is what devices change, in the order they were asked for, each specification's common part once and
// first.
type Resolution struct {
	Edits []specs.ContainerEdits
	// LoaderDirs are the directories the specifications ask the loader to prefer.
	LoaderDirs []string
}

// file is one good specification.
type file struct {
	path     string
	priority int
	spec     *specs.Spec
}

// Resolve finds devices by name. One that no specification has is NotFound, with what is wrong in the directories;
// one that two files of the same directory have is FailedPrecondition. No names need no files.
func (r *Registry) Resolve(names []string) (Resolution, error) {
	var out Resolution
	if len(names) == 0 {
		return out, nil
	}
	files, broken := r.read()
	common := map[string]bool{}
	for _, name := range names {
		f, dev, err := find(files, name)
		if err != nil {
			return Resolution{}, err
		}
		if dev == nil {
			return Resolution{}, errs.NotFound.Wrap(errors.Join(fmt.Errorf("no CDI specification in %s has device %s", strings.Join(r.dirs, ", "), name), broken))
		}
		if !common[f.path] {
			common[f.path] = true
			out.Edits = append(out.Edits, f.spec.ContainerEdits)
			if d := f.spec.Annotations[loaderDirectory]; d != "" {
				out.LoaderDirs = append(out.LoaderDirs, d)
			}
		}
		out.Edits = append(out.Edits, dev.ContainerEdits)
	}
	return out, nil
}

// find looks for a device in the directory with the highest priority that has it.
func find(files []file, name string) (*file, *specs.Device, error) {
	kind, device, _ := strings.Cut(name, "=")
	var at *file
	var dev *specs.Device
	for i := range files {
		f := &files[i]
		if f.spec.Kind != kind {
			continue
		}
		k := slices.IndexFunc(f.spec.Devices, func(d specs.Device) bool { return d.Name == device })
		switch {
		case k < 0:
		case at == nil || f.priority > at.priority:
			at, dev = f, &f.spec.Devices[k]
		case f.priority == at.priority:
			return nil, nil, errs.FailedPrecondition.Errorf("CDI device %s is in %s and in %s: remove one", name, at.path, f.path)
		}
	}
	return at, dev, nil
}

// read reads all specifications. A file that is wrong keeps no other from being used: it is in the error, for whom
// misses a device.
func (r *Registry) read() (files []file, broken error) {
	for priority, dir := range r.dirs {
		entries, err := os.ReadDir(dir)
		if err != nil {
			if !errors.Is(err, os.ErrNotExist) {
				broken = errors.Join(broken, err)
			}
			continue
		}
		for _, e := range entries {
			if ext := filepath.Ext(e.Name()); ext != ".json" && ext != ".yaml" || strings.HasPrefix(e.Name(), ".") {
				continue
			}
			path := filepath.Join(dir, e.Name())
			s, err := load(path)
			if err != nil {
				broken = errors.Join(broken, fmt.Errorf("%s: %w", path, err))
				continue
			}
			files = append(files, file{path, priority, s})
		}
	}
	return files, broken
}

func load(path string) (*specs.Spec, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // read only
	if err := trusted(path, f); err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxSpec+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxSpec {
		return nil, fmt.Errorf("more than %d bytes", maxSpec)
	}
	return Parse(b)
}

// trusted refuses what somebody else than root could have written: the file itself, or its name in its directory.
func trusted(path string, f *os.File) error {
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() {
		return fmt.Errorf("not a regular file (%v)", fi.Mode().Type())
	}
	dir, err := os.Stat(filepath.Dir(path))
	if err != nil {
		return err
	}
	for _, x := range []os.FileInfo{fi, dir} {
		st, ok := x.Sys().(*syscall.Stat_t)
		if !ok || st.Uid != 0 || x.Mode().Perm()&0o022 != 0 {
			return fmt.Errorf("%s may be written by others than root (uid %d, mode %v): it is not read", x.Name(), st.Uid, x.Mode())
		}
	}
	return nil
}

// Parse reads and checks one specification, JSON or YAML. Unknown keys are errors: an edit that is not understood
// must not be left out.
func Parse(b []byte) (*specs.Spec, error) {
	var s specs.Spec
	if err := yaml.UnmarshalStrict(b, &s); err != nil {
		return nil, err
	}
	return &s, check(&s)
}
