package unpacker_test

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/berth-project/berth/cri/internal/layers"
	"github.com/berth-project/berth/cri/internal/unpacker"
)

// TestConfinement looks at a child from outside, before it has done anything of its own: it has no namespace of the host
// but the user's, no capability beyond the six, no way to gain one, and of all mounts its root and its program. The
// filter and the limits, which the child takes on itself, come on top (TestStrangerCannotLeave).
func TestConfinement(t *testing.T) {
	clean(t)
	saw := []string{"no child was seen"}
	u := unpacker.New(unpacker.Config{Program: stranger(t), Stall: 300 * time.Millisecond, Patience: time.Second, Observe: func(pid int) {
		saw = look(pid)
	}})
	j := newJail(t)
	if _, err := u.Unpack(t.Context(), open(t, j.layer), bytes.NewReader(make([]byte, 1<<20)), layers.Blob{DiffID: digest.Digest("hang")}, layers.Limits{}); err == nil {
		t.Error("a child that hangs has an answer")
	}
	for _, what := range saw {
		t.Error(what)
	}
	j.unharmed(t)
}

// look says what is wrong with a child, or that it could not be looked at.
func look(pid int) (found []string) {
	for _, ns := range []string{"mnt", "net", "ipc", "uts", "pid"} {
		own, err := os.Readlink("/proc/self/ns/" + ns)
		its, cerr := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns))
		if err != nil || cerr != nil {
			return []string{fmt.Sprint(err, cerr)}
		}
		if own == its {
			found = append(found, "it is in the host's "+ns+" namespace")
		}
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return []string{err.Error()}
	}
	allowed := uint64(0)
	for _, c := range unpacker.Capabilities() {
		allowed |= 1 << c
	}
	for _, want := range []string{fmt.Sprintf("CapBnd:\t%016x", allowed), "CapInh:\t0000000000000000", "CapAmb:\t0000000000000000", "NoNewPrivs:\t1"} {
		if !strings.Contains(string(status), want+"\n") {
			found = append(found, fmt.Sprintf("no %q in its status", want))
		}
	}
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		return []string{err.Error()}
	}
	var at []string
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		at = append(at, f[4]+" "+strings.Split(f[5], ",")[0])
	}
	slices.Sort(at)
	if !slices.Equal(at, []string{"/ ro", "/unpacker ro"}) {
		found = append(found, fmt.Sprintf("its mounts are %v", at))
	}
	return found
}
