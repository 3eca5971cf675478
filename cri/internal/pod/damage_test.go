package pod

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-project/berth/proto/errs"
)

// spoil flips a bit of a record and starts the daemon anew.
func (n *node) spoil(kind, id string) {
	n.t.Helper()
	n.down()
	path := filepath.Join(n.dir, "records", kind, id)
	b, err := os.ReadFile(path)
	if err != nil {
		n.t.Fatal(err)
	}
	b[len(b)/2] ^= 4
	if err := os.WriteFile(path, b, 0o600); err != nil {
		n.t.Fatal(err)
	}
	n.up()
}

// TestDamagedRecord: what a damaged record described is ended, whole and for good, and nothing else; the next daemon finds
// nothing to do.
func TestDamagedRecord(t *testing.T) {
	const forks = "/bin/sleep 1000 & exec /bin/sleep 1001"
	t.Run("container", func(t *testing.T) {
		n := newNode(t)
		pod := n.run("p")
		broken, whole := n.start(pod, "broken", "/bin/sh", "-c", forks), n.start(pod, "whole", "/bin/sleep", "1000")
		created, err := n.Create(t.Context(), pod, containerConfig("created", "/bin/true"))
		if err != nil {
			t.Fatal(err)
		}
		n.spoil(containerKind, broken)
		n.gone(broken)
		n.spoil(containerKind, created)
		n.gone(created)
		if st := n.state(whole); st != isRunning {
			t.Errorf("the other container is %v", st)
		}
		n.restart()
		if st := n.state(whole); st != isRunning {
			t.Errorf("the other container is %v after another start", st)
		}
	})
	t.Run("pod", func(t *testing.T) {
		n := newNode(t)
		broken, whole := n.run("broken"), n.run("whole")
		c1, c2 := n.start(broken, "c", "/bin/sh", "-c", forks), n.start(whole, "c", "/bin/sleep", "1000")
		n.net.attached = map[string]bool{whole: true} // the CNI GC of a real network does this
		n.spoil(podKind, broken)
		n.gone(c1)
		if _, err := n.Pod(broken); !errors.Is(err, errs.NotFound) {
			t.Errorf("the damaged pod: %v", err)
		}
		if st := n.state(c2); st != isRunning {
			t.Errorf("the other pod's container is %v", st)
		}
		if again := n.run("broken"); again == broken {
			t.Error("the damaged pod is back")
		}
	})
}

// gone fails the test if anything of a container is left but the record in quarantine.
func (n *node) gone(id string) {
	n.t.Helper()
	if _, err := n.Container(id); !errors.Is(err, errs.NotFound) {
		n.t.Errorf("container with a damaged record: %v", err)
	}
	b, err := os.ReadFile("/proc/mounts")
	if err != nil {
		n.t.Fatal(err)
	}
	if strings.Contains(string(b), id) {
		n.t.Errorf("mounts of %s are left", id)
	}
	left, err := filepath.Glob(filepath.Join(n.dir, "*", "*", id+"*"))
	if err != nil || len(left) > 0 {
		n.t.Errorf("left of %s: %v %v", id, left, err)
	}
	for _, mount := range []string{n.groups.Unified, n.groups.V1["memory"]} {
		if left, _ := filepath.Glob(mount + n.own + "/pods/*" + id); mount != "" && len(left) > 0 {
			n.t.Errorf("group left: %v", left)
		}
	}
}
