package executor

import (
	"errors"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// TestMappingIsTheContainersOwn: a volume with the pod's own mappings, which is what a kubelet's are, costs no user namespace
// of its own; one with others, in either of the two, does.
func TestMappingIsTheContainersOwn(t *testing.T) {
	ids := func(host uint32) []specs.LinuxIDMapping { return []specs.LinuxIDMapping{{HostID: host, Size: 65536}} }
	made := errors.New("one is made")
	in := &inputs{
		join: map[string]int{"user": 7}, own: idMaps{mapLines(ids(1 << 17)), mapLines(ids(1 << 17))},
		mapping: func(string, string) (int, error) { return -1, made },
	}
	for _, c := range []struct {
		what       string
		uids, gids []specs.LinuxIDMapping
		fd         int
		err        error
	}{
		{"no mappings", nil, nil, 7, nil},
		{"the container's", ids(1 << 17), ids(1 << 17), 7, nil},
		{"other uids", ids(1 << 18), ids(1 << 17), -1, made},
		{"other gids", ids(1 << 17), ids(1 << 18), -1, made},
	} {
		fd, err := in.mappingFor(&specs.Mount{UIDMappings: c.uids, GIDMappings: c.gids})
		if fd != c.fd || !errors.Is(err, c.err) {
			t.Errorf("%s: %d, %v; want %d, %v", c.what, fd, err, c.fd, c.err)
		}
	}
	in.join = map[string]int{} // the host's ids
	if _, err := in.mappingFor(&specs.Mount{UIDMappings: ids(1 << 17), GIDMappings: ids(1 << 17)}); !errors.Is(err, made) {
		t.Errorf("without a user namespace: %v, want %v", err, made)
	}
}
