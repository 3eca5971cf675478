package torture

import (
	"context"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// times is how often something is killed: few, or with BERTH_TORTURE=1 all.
func times(few, all int) int {
	if os.Getenv("BERTH_TORTURE") != "" {
		return all
	}
	return few
}

// TestTortureDaemon kills berth-cri under load. Each time it answers again within a second.
func TestTortureDaemon(t *testing.T) {
	var took []time.Duration
	under(t, 4, &ledger{}, func(ctx context.Context) error {
		for range times(5, 500) {
			time.Sleep(time.Duration(50+rand.IntN(700)) * time.Millisecond)
			d, err := killDaemon(ctx)
			if err != nil {
				return err
			}
			took = append(took, d)
		}
		return nil
	})
	report(t, took)
}

// TestTortureShim kills supervisors under load; the daemon replaces each.
func TestTortureShim(t *testing.T) {
	killed := 0
	under(t, 4, &ledger{shimDies: true}, func(context.Context) error {
		for range times(4, 200) {
			time.Sleep(time.Duration(200+rand.IntN(500)) * time.Millisecond)
			killed += killShim()
		}
		time.Sleep(300 * time.Millisecond)
		return nil
	})
	t.Logf("%d shims killed", killed)
}

// TestTortureBoth kills the daemon and its supervisors together, whatever each of them is at: the next daemon finds what both
// held in the kernel.
func TestTortureBoth(t *testing.T) {
	var took []time.Duration
	l := &ledger{shimDies: true, bothDie: true}
	under(t, 3, l, func(ctx context.Context) error {
		for range times(3, 50) {
			time.Sleep(time.Duration(rand.IntN(600)) * time.Millisecond)
			first, second := killShims, node.process().Kill
			if rand.IntN(2) == 0 {
				first, second = second, first
			}
			first()
			time.Sleep(time.Duration(rand.IntN(3)*rand.IntN(40)) * time.Millisecond) // a third of them at once
			second()
			total.add(daemonKills, 1)
			d, err := node.start(ctx, nil)
			if err != nil {
				total.add(startFailures, 1)
				return err
			}
			took = append(took, d)
		}
		return nil
	})
	t.Logf("%d containers ended while nobody was there to see it, %d pods had none at that moment and were lost", l.unseen, l.lost)
	report(t, took)
}

// killShims kills all supervisors.
func killShims() {
	for _, pid := range node.shims() {
		if unix.Kill(pid, unix.SIGKILL) == nil {
			total.add(shimKills, 1)
		}
	}
}

func killDaemon(ctx context.Context) (time.Duration, error) {
	node.process().Kill()
	total.add(daemonKills, 1)
	took, err := node.start(ctx, nil)
	if err != nil {
		total.add(startFailures, 1)
	}
	return took, err
}

// killShim kills one supervisor, if there is any.
func killShim() int {
	pids := node.shims()
	if len(pids) == 0 {
		return 0
	}
	if err := unix.Kill(pids[rand.IntN(len(pids))], unix.SIGKILL); err != nil {
		return 0
	}
	total.add(shimKills, 1)
	return 1
}

// report prints how long the daemon was away; how long it may be is the benchmark's to say, on a machine that is not torn at.
func report(t *testing.T, took []time.Duration) {
	t.Helper()
	if len(took) == 0 {
		return
	}
	slices.Sort(took)
	t.Logf("%d kills; from exec to a good Version and Status: median %v, worst %v", len(took), took[len(took)/2], took[len(took)-1])
}

// TestSilentShim stops a supervisor and kills the daemon. The next daemon is ready without it, says what it has, takes
// nothing for dead, and has everything back when the supervisor goes on.
func TestSilentShim(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	t.Cleanup(func() { evict(t) })
	l := &ledger{}
	all, err := settle(ctx, node, l, 2)
	if err != nil {
		t.Fatal(err)
	}
	pids := node.shims()
	for _, pid := range pids {
		if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	took, err := killDaemon(ctx)
	if err != nil {
		t.Fatal(err)
	}
	report(t, []time.Duration{took})
	for _, r := range all {
		if st, err := r.p.n.client.ContainerStatus(ctx, r.id); err != nil || st.GetState() != cri.ContainerState_CONTAINER_RUNNING {
			t.Errorf("%s is %s (%v) while its supervisor is silent", r.p.name, st.GetState(), err)
		}
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, unix.SIGCONT); err != nil {
			t.Fatal(err)
		}
	}
	for i, r := range all {
		if err := r.leave(ctx, l, 40+i); err != nil {
			l.fault(otherFaults, "%s: %v", r.p.name, err)
		}
	}
	for _, f := range l.faults {
		t.Error(f)
	}
	node.clean(t)
}
