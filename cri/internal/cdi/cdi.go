// Package cdi resolves CDI device names to what is changed in a container (tags.cncf.io/container-device-interface
// 1.1): Requested finds the names in a CRI request, Registry reads the node's specifications, Apply edits an OCI
// spec.
//
// Specifications decide what a container may open on the host, so only files that nobody but root can write are
// read. What asks for them is the kubelet alone: the CRI's field, and the annotations the kubelet adds for a device
// plugin. Images have no say: there is no environment variable and no label that names a device.
//
// Hooks, network devices and RDT classes are Unimplemented, not ignored. The package imports no other of the daemon.
package cdi

import (
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/berth-project/berth/proto/errs"
)

// annotationPrefix starts the keys of annotations whose values are device names, separated by commas.
const annotationPrefix = "cdi.k8s.io/"

// loaderDirectory is the annotation of a specification that names a directory in the container whose libraries
// come before all others: see berth-gpu's cdi package.
const loaderDirectory = "gpu.berth-project/loader-directory"

// nameForm is vendor/class=device of the CDI specification, section "Kind" and "Device".
var nameForm = regexp.MustCompile(`^[A-Za-z]([A-Za-z0-9_.-]*[A-Za-z0-9])?/[A-Za-z]([A-Za-z0-9_-]*[A-Za-z0-9])?=[A-Za-z0-9]([A-Za-z0-9_.:-]*[A-Za-z0-9])?$`)

// Requested lists the devices of a container, each once: those of the CRI's field in its order, then those of the
// container's annotations by key.
func Requested(field []string, annotations map[string]string) ([]string, error) {
	var names []string
	add := func(where, name string) error {
		if !nameForm.MatchString(name) {
			return errs.InvalidArgument.Errorf("%s: %q is no CDI device name: want vendor/class=device", where, name)
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
		return nil
	}
	for _, name := range field {
		if err := add("CDI_devices", name); err != nil {
			return nil, err
		}
	}
	for _, key := range slices.Sorted(maps.Keys(annotations)) {
		if !strings.HasPrefix(key, annotationPrefix) {
			continue
		}
		for name := range strings.SplitSeq(annotations[key], ",") {
			if err := add("annotation "+key, name); err != nil {
				return nil, err
			}
		}
	}
	return names, nil
}
