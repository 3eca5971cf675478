//go:build cgo

package nvml

import (
	"encoding/binary"
	"testing"

	lib "github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/berth-project/berth/deviceplugin/internal/health"
)

// gpu is one GPU of a library: what it answers is set by a test; any other call is a nil method, which panics.
type gpu struct {
	lib.Device
	ecc, rows, action, link lib.Return // what each call answers
	uncorrected             uint64
	failed                  bool // rows
	wants                   lib.DeviceGpuRecoveryAction
	links, down             int // how many it has, and how many of them, from the first on, are down
}

func (g *gpu) GetTotalEccErrors(lib.MemoryErrorType, lib.EccCounterType) (uint64, lib.Return) {
	return g.uncorrected, g.ecc
}

func (g *gpu) GetRemappedRows() (int, int, bool, bool, lib.Return) {
	return 0, 0, false, g.failed, g.rows
}

func (g *gpu) GetFieldValues(v []lib.FieldValue) lib.Return {
	v[0].NvmlReturn = uint32(g.action)
	binary.LittleEndian.PutUint32(v[0].Value[:4], uint32(g.wants))
	return lib.SUCCESS
}

func (g *gpu) GetNvLinkState(i int) (lib.EnableState, lib.Return) {
	switch {
	case i >= g.links:
		return lib.FEATURE_DISABLED, lib.ERROR_INVALID_ARGUMENT
	case i < g.down:
		return lib.FEATURE_DISABLED, g.link
	}
	return lib.FEATURE_ENABLED, lib.SUCCESS
}

// TestEvidence: a call that fails leaves its figure unread, and no other; what the driver says there is none of is no
// failure where an older driver has none.
func TestEvidence(t *testing.T) {
	s := &Source{links: map[string]int{}}
	for _, c := range []struct {
		name string
		gpu  gpu
		want health.Sample
	}{
		{"all is well", gpu{links: 4}, health.Sample{Recovery: "none"}},
		{"ECC fails", gpu{links: 4, ecc: lib.ERROR_UNKNOWN, uncorrected: 7}, health.Sample{Recovery: "none", Unread: health.Unread{ECC: true}}},
		{"ECC tells", gpu{links: 4, uncorrected: 7}, health.Sample{Recovery: "none", Uncorrected: 7}},
		{"rows fail", gpu{links: 4, rows: lib.ERROR_TIMEOUT, failed: true}, health.Sample{Recovery: "none", Unread: health.Unread{Remap: true}}},
		{"rows tell", gpu{links: 4, failed: true}, health.Sample{Recovery: "none", RemapFailed: true}},
		{"the action fails", gpu{links: 4, action: lib.ERROR_UNKNOWN}, health.Sample{Unread: health.Unread{Recovery: true}}},
		{"no driver that says", gpu{links: 4, action: lib.ERROR_NOT_SUPPORTED}, health.Sample{}},
		{"a reset", gpu{links: 4, wants: lib.GPU_RECOVERY_ACTION_GPU_RESET}, health.Sample{Recovery: "reset"}},
		{"a link fails", gpu{links: 4, down: 1, link: lib.ERROR_UNKNOWN}, health.Sample{Recovery: "none", Unread: health.Unread{Links: true}}},
		{"two are down", gpu{links: 4, down: 2}, health.Sample{Recovery: "none", LinksDown: 2}},
		{"links not to be seen", gpu{links: 4, down: 1, link: lib.ERROR_NOT_SUPPORTED}, health.Sample{Recovery: "none", Unread: health.Unread{Links: true}}},
	} {
		var got health.Sample
		if s.evidence("x", &c.gpu, &got); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}
