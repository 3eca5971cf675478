//go:build !cgo

package nvml

import (
	"github.com/berth-project/berth/deviceplugin/internal/discovery"
	"github.com/berth-project/berth/proto/errs"
)

// Open says that this build has no NVML.
func Open(Config) (discovery.Source, error) {
	return nil, errs.Unimplemented.Errorf("this berth-gpu was built without cgo: use discovery = \"proc\", or build it with CGO_ENABLED=1")
}
