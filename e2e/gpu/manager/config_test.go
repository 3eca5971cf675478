package manager

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestReload: the offer changes with the file; a bad file is named and changes nothing.
func TestReload(t *testing.T) {
	l, k := started(t)
	text, err := os.ReadFile(l.config)
	if err != nil {
		t.Fatal(err)
	}
	set := func(more string) {
		t.Helper()
		tmp := l.config + ".tmp"
		if err := os.WriteFile(tmp, []byte(string(text)+more), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(tmp, l.config); err != nil {
			t.Fatal(err)
		}
	}
	const shared = "nvidia.com/gpu.shared"
	set("\n[[resources]]\nname = \"" + shared + "\"\nselect = {uuid = [\"" + uuid(7) + "\"]}\nsharing = {strategy = \"time-slicing\", replicas = 4, one_per_container = true}\n[[resources]]\nname = \"" + gpu + "\"\n")
	k.await(shared, 4, 4, soon)
	k.await(gpu, 7, 7, soon)
	if _, ids, err := k.run(shared, 1); err != nil || !strings.HasPrefix(ids[0], uuid(7)+"::") {
		t.Error(ids, err)
	}
	if _, _, err := k.run(shared, 2); err == nil || !strings.Contains(err.Error(), "request 1") {
		t.Error("two shares for one container:", err)
	}
	set("\n[[resources]]\nnmae = \"x\"\n")
	within(t, soon, "a refusal", func() (bool, string) {
		return strings.Contains(l.log.String(), "the old one stays") && strings.Contains(l.log.String(), "resources.name"), l.log.String()
	})
	k.await(shared, 4, 4, 10*time.Millisecond)
	l.setProfile(fault(eight, "{gpu: 7, sample: {lost: true}}")) // all shares of a GPU fall ill with it
	k.await(shared, 0, 4, soon)
	k.await(gpu, 7, 7, 10*time.Millisecond)
	l.setProfile(eight)
	k.await(shared, 4, 4, soon)
	set("") // the resource is dropped: first an empty list
	k.await(gpu, 8, 8, soon)
	k.await(shared, 0, 0, soon)
}

// TestStatus is the command, as an operator calls it.
func TestStatus(t *testing.T) {
	l, _ := started(t)
	run := func(args ...string) string {
		t.Helper()
		out, err := exec.Command(filepath.Join(os.Getenv("BERTH_BIN"), "berth-gpu"), append([]string{"--config", l.config}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return string(out)
	}
	within(t, soon, "the table", func() (bool, string) {
		out := run("status")
		return strings.Contains(out, uuid(7)) && strings.Contains(out, gpu+"  8") && strings.Contains(out, "listens") && strings.Contains(out, "not known"), out
	})
	if out := run("status", "--json"); !strings.Contains(out, `"healthy": 8`) {
		t.Error(out)
	}
}

// TestMPSWithoutDriver: shares whose daemon cannot serve are not given away, and the status says why.
func TestMPSWithoutDriver(t *testing.T) {
	l := newLab(t, eight, "", "[[resources]]\nname = \"nvidia.com/gpu.mps\"\nsharing = {strategy = \"mps\", replicas = 2}\n")
	k := newKubelet(t)
	l.start()
	k.await("nvidia.com/gpu.mps", 0, 16, 5*time.Second)
	if _, _, err := k.run("nvidia.com/gpu.mps", 1); err == nil {
		t.Error("a share was given whose daemon does not run")
	}
	within(t, soon, "the reason", func() (bool, string) {
		return strings.Contains(l.log.String(), "MPS needs the driver's own program"), l.log.String()
	})
}
