package manager

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

const gpu = "nvidia.com/gpu"

func TestRegisterAndAllocate(t *testing.T) {
	for _, way := range []string{"both", "watcher", "legacy"} {
		t.Run(way, func(t *testing.T) {
			l := newLab(t, eight, "", "[kubelet]\nregistration = \""+way+"\"")
			k := newKubelet(t)
			start := time.Now()
			l.start()
			k.await(gpu, 8, 8, 5*time.Second)
			t.Logf("from exec to 8 devices: %v", time.Since(start))
			id, ids, err := k.run(gpu, 4)
			if err != nil {
				t.Fatal(err)
			}
			o, err := k.options(id)
			if err != nil {
				t.Fatal(err)
			}
			var cdi []string
			for _, d := range o.CDIDevices {
				cdi = append(cdi, d.Name)
			}
			want := []string{}
			for _, u := range ids {
				want = append(want, "berth.nvidia.com/gpu="+u)
			}
			slices.Sort(cdi)
			if !slices.Equal(cdi, want) || len(o.Devices)+len(o.Mounts)+len(o.Envs) > 0 {
				t.Errorf("%v for %v: %+v", cdi, ids, o)
			}
			if _, _, err := k.run(gpu, 5); err == nil {
				t.Error("5 of the 4 that are left")
			}
			if _, more, err := k.run(gpu, 4); err != nil || len(more) != 4 {
				t.Error(more, err)
			}
			k.unique()
		})
	}
}

// TestKubeletRestarts: pods keep their devices, new ones get others, the plugin is back at once.
func TestKubeletRestarts(t *testing.T) {
	for _, way := range []string{"both", "legacy"} {
		t.Run(way, func(t *testing.T) { kubeletRestarts(t, way) })
	}
}

func kubeletRestarts(t *testing.T, way string) {
	l := newLab(t, eight, "", "[kubelet]\nregistration = \""+way+"\"")
	k := newKubelet(t)
	l.start()
	k.await(gpu, 8, 8, 5*time.Second)
	have := map[string][]string{}
	var worst time.Duration
	n := times(200)
	for i := range n {
		if len(have) > 0 && rand.IntN(2) == 0 || len(have) == 8 {
			for id := range have {
				k.end(id)
				delete(have, id)
				break
			}
		}
		k.settle()
		id, ids, err := k.run(gpu, 1)
		if err != nil {
			t.Fatal(i, err)
		}
		have[id] = ids
		k.unique()
		k.restart()
		worst = max(worst, k.await(gpu, 8, 8, 2*time.Second))
		for id, ids := range have {
			if got := k.devices(id)[gpu]; !slices.Equal(got, ids) {
				t.Fatalf("restart %d: %s had %v and has %v", i, id, ids, got)
			}
		}
	}
	t.Logf("%d kubelet restarts: registered again within %v, 0 double allocations", n, worst)
}

// TestPluginKills: SIGKILL at any moment, and another process.
func TestPluginKills(t *testing.T) {
	l := newLab(t, eight, "", "")
	k := newKubelet(t)
	l.start()
	k.await(gpu, 8, 8, 5*time.Second)
	id, ids, err := k.run(gpu, 3)
	if err != nil {
		t.Fatal(err)
	}
	var worst time.Duration
	n := times(100)
	for i := range n {
		l.kill()
		k.await(gpu, 0, 8, 2*time.Second)
		l.start()
		worst = max(worst, k.await(gpu, 8, 8, 2*time.Second))
		if got := k.devices(id)[gpu]; !slices.Equal(got, ids) {
			t.Fatalf("kill %d: %v became %v", i, ids, got)
		}
		other, _, err := k.run(gpu, 5)
		if err != nil {
			t.Fatal(i, err)
		}
		k.unique()
		k.end(other)
	}
	t.Logf("%d plugin kills: registered again within %v of its start, 0 double allocations", n, worst)
}

// TestPluginUpgrade: a new process after each stop. The resource does not go to 0 for longer than the process is away.
func TestPluginUpgrade(t *testing.T) {
	l := newLab(t, eight, "", "")
	k := newKubelet(t)
	l.start()
	k.await(gpu, 8, 8, 5*time.Second)
	for range 3 {
		l.signal(syscall.SIGTERM)
		if code := l.cmd.ProcessState.ExitCode(); code != 0 {
			t.Fatalf("exit %d", code)
		}
		l.clean()
		l.start()
		t.Logf("back after %v", k.await(gpu, 8, 8, 2*time.Second))
	}
}

// TestTwoPlugins: a second process with the same state refuses to run; one with a state of its own serves the same
// devices, and nothing is given twice.
func TestTwoPlugins(t *testing.T) {
	l := newLab(t, eight, "", "")
	k := newKubelet(t)
	l.start()
	k.await(gpu, 8, 8, 5*time.Second)
	same := *l
	same.start()
	<-same.done
	if same.cmd.ProcessState.Success() || !strings.Contains(same.log.String(), "another berth-gpu") {
		t.Errorf("a second one with the same state: %s", same.log)
	}
	other := newLab(t, eight, "", "[kubelet]\nregistration = \"legacy\"")
	other.start()
	within(t, 3*time.Second, "the other registers", func() (bool, string) {
		return strings.Contains(other.log.String(), "way=legacy"), other.log.String()
	})
	for i := range 8 {
		// the kubelet itself asks a dead plugin until it has noticed
		within(t, 2*time.Second, "a pod", func() (bool, string) {
			_, _, err := k.run(gpu, 1)
			return err == nil, fmt.Sprint(err)
		})
		k.unique()
		if i == 3 {
			other.kill()
			k.await(gpu, 8, 8, 2*time.Second)
		}
	}
	if _, _, err := k.run(gpu, 1); err == nil {
		t.Error("a ninth of eight")
	}
	if left, err := filepath.Glob("/var/lib/kubelet/device-plugins/berth-gpu*"); err != nil || len(left) != 2 {
		t.Log("sockets:", left, err)
	}
	other.start() // it takes its own dead socket away
	within(t, 3*time.Second, "the other registers again", func() (bool, string) {
		return strings.Contains(other.log.String(), "way=legacy"), other.log.String()
	})
}

// TestUntrustedDirectory: whoever may write next to the kubelet's socket could pass for it.
func TestUntrustedDirectory(t *testing.T) {
	l := newLab(t, eight, "", "")
	k := newKubelet(t)
	dir := "/var/lib/kubelet/device-plugins"
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	l.start()
	within(t, 3*time.Second, "a refusal", func() (bool, string) {
		return strings.Contains(l.log.String(), "is not root's alone"), l.log.String()
	})
	if err := os.Chmod(dir, 0o750); err != nil {
		t.Fatal(err)
	}
	k.await(gpu, 8, 8, 3*time.Second)
}
