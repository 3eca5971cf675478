//go:build cgo

package nvml

import (
	"testing"

	lib "github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/berth-project/berth/deviceplugin/internal/discovery"
	"github.com/berth-project/berth/proto/errs"
)

// library is one that knows GPUs by address; a look-up by UUID meets a lost one, as a real one's may.
type library struct {
	lib.Interface
	at map[string]lib.Device
}

func (l library) DeviceGetHandleByUUID(string) (lib.Device, lib.Return) {
	return nil, lib.ERROR_GPU_IS_LOST
}

func (l library) DeviceGetHandleByPciBusId(bus string) (lib.Device, lib.Return) {
	d := l.at[bus]
	switch g, _ := d.(named); {
	case d == nil:
		return nil, lib.ERROR_NOT_FOUND
	case g.uuid == "":
		return nil, lib.ERROR_GPU_IS_LOST
	}
	return d, lib.SUCCESS
}

// named is a GPU that tells its UUID; "" is lost.
type named struct {
	lib.Device
	uuid string
	says lib.Return
}

func (n named) GetUUID() (string, lib.Return) { return n.uuid, n.says }

// TestDevice: a GPU is found where it is, whatever another one does; one that is lost is lost, and one that is not
// there, or has made room for another, is not found.
func TestDevice(t *testing.T) {
	const a, b = "GPU-11111111-1111-1111-1111-11111111111a", "GPU-22222222-2222-2222-2222-22222222222b"
	s := &Source{lib: library{at: map[string]lib.Device{
		"0000:01:00.0": named{}, "0000:02:00.0": named{uuid: "GPU-22222222-2222-2222-2222-22222222222B"},
		"0000:03:00.0": named{uuid: a, says: lib.ERROR_GPU_IS_LOST}, "0000:04:00.0": named{uuid: a, says: lib.ERROR_UNKNOWN},
	}}}
	for name, c := range map[string]struct {
		uuid, bus string
		lost      bool
		class     errs.Class
	}{
		"beside a lost one":      {b, "0000:02:00.0", false, ""},
		"lost":                   {a, "0000:01:00.0", true, ""},
		"lost while it is asked": {a, "0000:03:00.0", true, ""},
		"failing":                {a, "0000:04:00.0", false, errs.Unavailable},
		"nobody is there":        {a, "0000:05:00.0", false, errs.NotFound},
		"another one is there":   {a, "0000:02:00.0", false, errs.NotFound},
	} {
		d, lost, err := s.device(discovery.Target{UUID: c.uuid, Bus: c.bus})
		if lost != c.lost || (err == nil) != (c.class == "") || err != nil && errs.Of(err) != c.class || (d != nil) != (err == nil && !lost) {
			t.Errorf("%s: %v %v %v", name, d, lost, err)
		}
	}
}
