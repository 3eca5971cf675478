package cdi

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	specs "tags.cncf.io/container-device-interface/specs-go"

	"github.com/berth-project/berth/deviceplugin/internal/driver"
	"github.com/berth-project/berth/internal/atomicfile"
	"github.com/berth-project/berth/internal/failpoint"
)

// FileName is our one file in a CDI directory.
const FileName = "berth-gpu.json"

var (
	failBeforeWrite = failpoint.New("gpu.cdi.before_write")
	failAfterWrite  = failpoint.New("gpu.cdi.after_write")
)

// Encode is the file's content.
func Encode(spec *specs.Spec) ([]byte, error) {
	b, err := json.MarshalIndent(spec, "", "  ")
	return append(b, '\n'), err
}

// Ensure makes dir hold the specification, and says whether it had to write. The directory is made when it is
// missing: a reboot wipes /var/run/cdi, as it must, because the numbers in it were that boot's.
func Ensure(dir string, spec *specs.Spec) (wrote bool, err error) {
	b, err := Encode(spec)
	if err != nil {
		return false, err
	}
	file := filepath.Join(dir, FileName)
	if old, err := os.ReadFile(file); err == nil && bytes.Equal(old, b) {
		return false, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // runtimes of any user read it
		return false, fmt.Errorf("CDI directory: %w", err)
	}
	if err := failBeforeWrite.Hit(); err != nil {
		return false, err
	}
	if err := atomicfile.Write(file, b, 0o644); err != nil {
		return false, fmt.Errorf("CDI specification: %w", err)
	}
	return true, failAfterWrite.Hit()
}

// Remove takes our file away; one that is not there is no error.
func Remove(dir string) error {
	err := os.Remove(filepath.Join(dir, FileName))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// Verify reads the file back and looks at everything it names: files there, nodes of the right number. view maps a
// path of the node to where this process sees it. broken says what is wrong with single devices, by name; err is
// about the file or what all devices share.
func Verify(dir string, view func(host string) string) (broken map[string]error, err error) {
	file := filepath.Join(dir, FileName)
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("CDI specification: %w", err)
	}
	var spec specs.Spec
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&spec); err != nil {
		return nil, fmt.Errorf("CDI specification %s: %w", file, err)
	}
	broken = map[string]error{}
	for _, dev := range spec.Devices {
		if err := look(dev.ContainerEdits, view); err != nil {
			broken[dev.Name] = err
		}
	}
	return broken, look(spec.ContainerEdits, view)
}

// look says what of some edits is not on the node.
func look(e specs.ContainerEdits, view func(host string) string) error {
	var all []error
	seen := map[string]bool{}
	for _, m := range e.Mounts {
		if seen[m.HostPath] {
			continue
		}
		seen[m.HostPath] = true
		if _, err := os.Stat(view(m.HostPath)); err != nil {
			all = append(all, err)
		}
	}
	for _, n := range e.DeviceNodes {
		node := driver.Node{Path: strings.TrimPrefix(n.Path, "/dev/"), Major: n.Major, Minor: n.Minor}
		if err := driver.CheckNode(view(cmp.Or(n.HostPath, n.Path)), node); err != nil {
			all = append(all, err)
		}
	}
	return errors.Join(all...)
}
