package manager

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// soon is the limit for everything the kubelet must notice.
const soon = 2 * time.Second

// health is what the kubelet thinks of each device.
func (k *kubelet) health(name string) map[string]string {
	out := map[string]string{}
	for id, d := range k.mgr.GetAllocatableDevices(k.log)[name] {
		out[id] = d.Health
	}
	return out
}

// awaitSick waits until exactly these devices are not allocatable.
func (k *kubelet) awaitSick(name string, all int, limit time.Duration, sick ...string) time.Duration {
	k.t.Helper()
	slices.Sort(sick)
	return within(k.t, limit, fmt.Sprintf("sick: %v", sick), func() (bool, string) {
		healthy, total := k.counts(name)
		have := k.health(name)
		for _, id := range sick {
			if _, ok := have[id]; ok {
				return false, id + " is still allocatable"
			}
		}
		return int(healthy) == all-len(sick) && int(total) == all, fmt.Sprintf("%d of %d", healthy, total)
	})
}

// started is a running plugin on eight GPUs, directly and through the probe process.
func started(t *testing.T, args ...string) (*lab, *kubelet) {
	t.Helper()
	l := newLab(t, eight, "", "", args...)
	k := newKubelet(t)
	l.start()
	k.await(gpu, 8, 8, 5*time.Second)
	return l, k
}

// TestFaults: each fault takes its GPU and no other away, and the kubelet sees its end.
func TestFaults(t *testing.T) {
	hang := 3 * time.Second
	if full() {
		hang *= 10
	}
	for name, c := range map[string]struct{ fault, log string }{
		"lost":             {"{gpu: 3, sample: {lost: true}}", "does not answer on its bus"},
		"unplugged":        {"{gpu: 3, gone: true}", "does not answer on its bus"},
		"ECC":              {"{gpu: 3, sample: {uncorrected: 2}}", "2 uncorrectable memory errors"},
		"rows":             {"{gpu: 3, sample: {remapFailed: true}}", "has to be replaced"},
		"NVLink":           {"{gpu: 3, sample: {linksDown: 2}}", "2 NVLinks are down"},
		"recovery":         {"{gpu: 3, sample: {recovery: reset}}", "asks for a reset"},
		"hangs":            {"{gpu: 3, hang: " + hang.String() + "}", "not answering"},
		"off the bus, XID": {"{gpu: 3, xid: 79, times: 1, sample: {lost: true}}", "xid=79"},
	} {
		for _, via := range []string{"", "--fake-child"} {
			if via != "" && !strings.HasPrefix(name, "hangs") && name != "lost" {
				continue
			}
			t.Run(name+via, func(t *testing.T) {
				var args []string
				if via != "" {
					args = []string{via}
				}
				l, k := started(t, args...)
				id, ids, err := k.run(gpu, 1)
				if err != nil {
					t.Fatal(err)
				}
				l.setProfile(fault(eight, c.fault))
				fell := k.awaitSick(gpu, 8, soon, uuid(3))
				within(t, soon, "the log says "+c.log, func() (bool, string) { return strings.Contains(l.log.String(), c.log), "it does not" })
				if _, _, err := k.run(gpu, 8); err == nil {
					t.Error("eight were given while one is sick")
				}
				if got := k.devices(id)[gpu]; !slices.Equal(got, ids) {
					t.Errorf("another pod's device: %v, was %v", got, ids)
				}
				if strings.HasPrefix(name, "hangs") {
					time.Sleep(time.Second) // the others are looked at all the while
					k.awaitSick(gpu, 8, 10*time.Millisecond, uuid(3))
				}
				l.setProfile(eight)
				limit := soon
				if strings.HasPrefix(name, "hangs") && via == "" {
					limit = hang + soon // a goroutine in the library cannot be ended; in the probe process it can
				}
				t.Logf("seen within %v, its end within %v", fell, k.await(gpu, 8, 8, limit))
			})
		}
	}
}

// TestApplicationFault: XIDs of a program are none of the GPU's.
func TestApplicationFault(t *testing.T) {
	l, k := started(t)
	l.setProfile(fault(eight, "{gpu: 2, xid: 13, times: 1}", "{gpu: 2, xid: 31, times: 2}"))
	within(t, soon, "the XID in the log", func() (bool, string) { return strings.Count(l.log.String(), "msg=XID") >= 3, l.log.String() })
	k.await(gpu, 8, 8, time.Millisecond)
}

// TestFlaps: a GPU that comes and goes.
func TestFlaps(t *testing.T) {
	l, k := started(t)
	var fell, rose time.Duration
	n := times(50)
	for range n {
		l.setProfile(fault(eight, "{gpu: 5, sample: {lost: true}}"))
		fell = max(fell, k.awaitSick(gpu, 8, soon, uuid(5)))
		l.setProfile(eight)
		rose = max(rose, k.await(gpu, 8, 8, soon))
	}
	k.unique()
	t.Logf("%d flaps: lost within %v, back within %v", n, fell, rose)
}

const divided = `origin: test
driver: {version: 580.159.04, cuda: "13.0"}
majors: {nvidia: 195, uvm: 510, caps: 511}
gpus:
  - product: NVIDIA H100 80GB HBM3
    mig: true
    uuid: GPU-be27f000-0000-4000-8000-000000000300
    bus: "0000:10:00.0"
    minor: 0
    numa: 0
    instances: [%s]
  - {product: NVIDIA H100 80GB HBM3, uuid: GPU-be27f000-0000-4000-8000-000000000301, bus: "0000:18:00.0", minor: 1, numa: 0}
`

// TestMIGUnderLoad changes the layout while pods are admitted: resources come and go, the whole GPU is not touched,
// and nothing that is gone is given.
func TestMIGUnderLoad(t *testing.T) {
	small := fmt.Sprintf(divided, "{profile: 1g.10gb, gi: 7, ci: 0}, {profile: 1g.10gb, gi: 8, ci: 0}")
	large := fmt.Sprintf(divided, "{profile: 3g.40gb, gi: 2, ci: 0}")
	l := newLab(t, small, "mig_strategy = \"mixed\"\n", "")
	k := newKubelet(t)
	l.start()
	const one, three = "nvidia.com/mig-1g.10gb", "nvidia.com/mig-3g.40gb"
	k.await(one, 2, 2, 5*time.Second)
	k.await(gpu, 1, 1, soon)
	if _, ids, err := k.run(gpu, 1); err != nil || len(ids) != 1 {
		t.Fatal(ids, err)
	}
	var worst time.Duration
	for i := range times(50) {
		profile, comes, n, goes := large, three, int64(1), one
		if i%2 == 1 {
			profile, comes, n, goes = small, one, 2, three
		}
		l.setProfile(profile)
		worst = max(worst, k.await(comes, n, n, soon))
		worst = max(worst, k.await(goes, 0, 0, soon))
		id, _, err := k.run(comes, 1)
		if err != nil {
			t.Fatal(i, err)
		}
		if _, _, err := k.run(goes, 1); err == nil {
			t.Fatalf("%s was given, which is gone", goes)
		}
		k.await(gpu, 1, 1, 10*time.Millisecond)
		k.unique()
		k.end(id)
	}
	t.Logf("layouts changed within %v", worst)
}

// TestCDIWiped: the specification is back within the poll, the same.
func TestCDIWiped(t *testing.T) {
	l, k := started(t)
	file := filepath.Join(l.cdi(), "berth-gpu.json")
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, how := range []func() error{
		func() error { return os.RemoveAll(l.cdi()) },
		func() error { return os.WriteFile(file, []byte("{}"), 0o600) },
		func() error { return os.RemoveAll(filepath.Join(l.dir, "dev")) }, // with it the nodes: a reboot
	} {
		if err := how(); err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(file); err != nil {
			t.Fatal(err)
		}
		within(t, soon, "the specification", func() (bool, string) {
			got, err := os.ReadFile(file)
			_, derr := os.Lstat(filepath.Join(l.dir, "dev/nvidia7"))
			return string(got) == string(want) && derr == nil, fmt.Sprint(err, derr)
		})
	}
	if _, _, err := k.run(gpu, 8); err != nil {
		t.Error(err)
	}
}

// TestListHangs: a driver that does not list its GPUs does not keep a plugin from serving the cached list, and what
// cannot be specified is not given away; health goes on.
func TestListHangs(t *testing.T) {
	l, k := started(t)
	if err := os.RemoveAll(l.cdi()); err != nil {
		t.Fatal(err)
	}
	l.kill()
	k.await(gpu, 0, 8, 2*time.Second) // it has heard of the end: what it says next is of the new process
	l.setProfile(eight + "hang: 3s\n")
	l.start()
	t.Logf("eight devices from the cache after %v", k.await(gpu, 8, 8, time.Second))
	start := time.Now()
	if _, ids, err := k.run(gpu, 2); err != nil || len(ids) != 2 {
		t.Error(ids, err)
	}
	if took := time.Since(start); took < time.Second {
		t.Errorf("given after %v, before the driver had answered", took)
	}
	if _, err := os.Stat(filepath.Join(l.cdi(), "berth-gpu.json")); err != nil {
		t.Error(err)
	}
}

// TestDeathAtEachStep kills the plugin at every failpoint, once; the next process goes on.
func TestDeathAtEachStep(t *testing.T) {
	for _, point := range []string{
		"gpu.cdi.before_write", "gpu.cdi.after_write", "gpu.round.before_spec", "gpu.round.before_publish", "gpu.register.after_listen",
		"gpu.register.before", "gpu.register.after", "gpu.allocate.before", "gpu.allocate.after", "gpu.list.before_send",
	} {
		t.Run(point, func(t *testing.T) {
			l := newLab(t, eight, "", "")
			k := newKubelet(t)
			t.Setenv("BERTH_FAIL", point+"=kill")
			l.start()
			if strings.HasPrefix(point, "gpu.allocate") {
				k.await(gpu, 8, 8, 5*time.Second)
				if _, _, err := k.run(gpu, 1); err == nil {
					t.Error("a dead plugin gave a device")
				}
			}
			select {
			case <-l.done:
			case <-time.After(5 * time.Second):
				t.Fatal("it did not die there")
			}
			t.Setenv("BERTH_FAIL", "")
			l.start()
			k.await(gpu, 8, 8, soon)
			within(t, soon, "eight for a pod", func() (bool, string) { // the kubelet itself asks a dead plugin until it has noticed
				_, _, err := k.run(gpu, 8)
				return err == nil, fmt.Sprint(err)
			})
			k.unique()
		})
	}
}
