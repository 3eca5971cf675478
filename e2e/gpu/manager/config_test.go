package manager

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestReload: the offer changes with the file; a bad file is named and changes nothing.
func TestReload(t *testing.T) {
	l, k := started(t)
	k.serveResources()
	text, err := os.ReadFile(l.config)
	if err != nil {
		t.Fatal(err)
	}
	set := func(more string) { l.setConfig(string(text) + more) }
	set("\n[[resources]]\nname = \"" + shared + "\"\nselect = {uuid = [\"" + uuid(7) + "\"]}\nsharing = {strategy = \"time-slicing\", replicas = 4, one_per_container = true}\n[[resources]]\nname = \"" + gpu + "\"\n")
	k.await(shared, 4, 4, soon)
	k.await(gpu, 7, 7, soon)
	id, ids, err := k.run(shared, 1)
	if err != nil || !strings.HasPrefix(ids[0], uuid(7)+"::") {
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
	set("")                  // the resource is dropped: first an empty list
	k.await(gpu, 7, 8, soon) // of the eighth a pod has a share
	k.await(shared, 0, 0, soon)
	time.Sleep(1200 * time.Millisecond) // PodResources is asked once a second: what it never showed is given for longer
	k.end(id)
	k.await(gpu, 8, 8, backWithin)
}

const shared = "nvidia.com/gpu.shared"

// backWithin is how long a device that a pod gave back may take to be offered anew: PodResources showed it, and has
// not for 5 s.
const backWithin = 8 * time.Second

// TestOfferChangesUnderPods: a GPU that a pod has under one offer is nobody's under another, whichever way the offer
// changes and over a restart of the plugin, until the pod ends.
func TestOfferChangesUnderPods(t *testing.T) {
	l, k := started(t)
	k.serveResources()
	text, err := os.ReadFile(l.config)
	if err != nil {
		t.Fatal(err)
	}
	rule := func(name, sharing string) string {
		return string(text) + "\n[[resources]]\nname = \"" + name + "\"\nsharing = {" + sharing + "}\n"
	}
	const four = "strategy = \"time-slicing\", replicas = 4"
	pod, ids, err := k.run(gpu, 2)
	if err != nil {
		t.Fatal(err)
	}
	l.setConfig(rule(gpu, four)) // the same name, other ids
	k.await(gpu, 24, 32, soon)
	if _, got, err := k.run(gpu, 24); err != nil || slices.ContainsFunc(got, func(id string) bool { return strings.HasPrefix(id, ids[0]) || strings.HasPrefix(id, ids[1]) }) {
		t.Error(got, err)
	}
	if _, _, err := k.run(gpu, 1); err == nil {
		t.Error("a share of a GPU that a pod has whole")
	}
	l.kill()
	l.setConfig(rule(shared, four)) // another name, in another process, which has to ask who has what
	l.start()
	within(t, soon, "the resource", func() (bool, string) { _, all := k.counts(shared); return all == 32, l.log.String() })
	if _, got, err := k.run(shared, 1); err == nil {
		t.Errorf("%v was given, and pods have all GPUs", got)
	}
	k.await(shared, 0, 32, soon)
	k.unique()
	k.end(pod)
	k.await(shared, 8, 32, backWithin)
	if _, got, err := k.run(shared, 1); err != nil || !strings.HasPrefix(got[0], ids[0]) && !strings.HasPrefix(got[0], ids[1]) {
		t.Error(got, err)
	}
	l.setConfig(string(text)) // and back
	k.await(gpu, 1, 8, soon)
	if _, _, err := k.run(gpu, 1); err != nil {
		t.Error(err)
	}
	k.unique()
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
