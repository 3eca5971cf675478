package torture

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/e2e/harness"
)

// shortScript prints count lines and exits with code.
func shortScript(count, code int) string {
	return fmt.Sprintf("i=0; while [ $i -lt %d ]; do echo line $i; i=$((i+1)); [ $((i %% 25)) = 0 ] && usleep 10000; done; exit %d", count, code)
}

// longScript prints lines until it is told to stop, says so and exits with code.
func longScript(code int) string {
	return fmt.Sprintf("trap 'echo goodbye; exit %d' TERM; i=0; while :; do echo line $i; i=$((i+1)); usleep 4000; done", code)
}

// ledger is what all workers of a load must agree on.
type ledger struct {
	mu       sync.Mutex
	owner    map[string]string // address: pod
	lives    int
	startErr int // starts that a dying shim took along; only then allowed
	shimDies bool
	bothDie  bool // the daemon and its shims, at once: a pod of which nothing runs then is lost, and who ends then ends unseen
	unseen   int
	lost     int
	cut      bool // the power is: what is seen last proves nothing
	faults   []string
}

func (l *ledger) fault(sort, format string, args ...any) {
	if l.cut {
		return
	}
	total.add(sort, 1)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.faults = append(l.faults, fmt.Sprintf(format, args...))
}

// note counts what may happen.
func (l *ledger) note(what *int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	*what++
}

func (l *ledger) take(ip, pod string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.owner == nil {
		l.owner = map[string]string{}
	}
	if other := l.owner[ip]; other != "" || ip == "" {
		l.faults = append(l.faults, fmt.Sprintf("address %q of pod %s is pod %s's", ip, pod, other))
	}
	l.owner[ip] = pod
}

func (l *ledger) give(ip string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.owner, ip)
}

// lives runs a few pods' whole lives.
func lives(ctx context.Context, n *machine, count int) error {
	l := &ledger{}
	for i := range count {
		if err := life(ctx, n, l, fmt.Sprintf("warm-%d", i)); err != nil {
			return err
		}
	}
	if len(l.faults) > 0 {
		return errors.New(strings.Join(l.faults, "; "))
	}
	return nil
}

// life is one pod's: two containers, one that ends by itself and one that is stopped, each with its log and its code.
func life(ctx context.Context, n *machine, l *ledger, name string) error {
	p, err := runPod(ctx, n, name)
	if err != nil && p != nil && l.bothDie && p.lost(ctx) {
		l.note(&l.lost)
		return p.remove(ctx)
	}
	if err != nil {
		return err
	}
	l.take(p.ip, name)
	defer l.give(p.ip)
	code, count := 1+rand.IntN(100), 100+rand.IntN(300)
	for _, c := range []struct {
		name, script string
		stop         bool
		code, count  int
	}{
		{"short", shortScript(count, code), false, code, count},
		{"long", longScript(code), true, code, -1},
	} {
		err := p.container(ctx, l, c.name, c.script, c.stop, c.code, c.count)
		if err != nil && l.bothDie && p.lost(ctx) {
			l.note(&l.lost)
			return p.remove(ctx)
		}
		if err != nil {
			return errors.Join(fmt.Errorf("pod %s: %w", name, err), p.remove(ctx))
		}
	}
	if ip, err := p.address(ctx); (err != nil || ip != p.ip) && !(l.bothDie && p.lost(ctx)) {
		l.fault(restarted, "pod %s has address %q, had %q (%v)", name, ip, p.ip, err)
	}
	l.give(p.ip)
	if err := p.remove(ctx); err != nil {
		return fmt.Errorf("pod %s: %w", name, err)
	}
	total.add(podLives, 1)
	l.mu.Lock()
	l.lives++
	l.mu.Unlock()
	return nil
}

func (p *sandbox) container(ctx context.Context, l *ledger, name, script string, stop bool, code, count int) error {
	id, err := p.create(ctx, name, script)
	if err != nil {
		return err
	}
	if err := p.n.client.StartContainer(ctx, id); err != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.shimDies {
			l.startErr++
			return nil // the kubelet would start the next attempt
		}
		return err
	}
	log := p.config.GetLogDirectory() + "/" + name + ".log"
	if stop {
		for { // it must have set its trap
			if n, _, err := lines(log); n > 10 || err != nil && !errors.Is(err, os.ErrNotExist) {
				break
			}
			if st, err := p.n.client.ContainerStatus(ctx, id); err != nil || st.GetState() == cri.ContainerState_CONTAINER_EXITED {
				break // the checks below say what is wrong
			}
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(time.Duration(rand.IntN(200)) * time.Millisecond)
		if st, err := p.n.client.ContainerStatus(ctx, id); err != nil || st.GetState() != cri.ContainerState_CONTAINER_RUNNING {
			if l.bothDie && st.GetReason() == "Unknown" && st.GetStartedAt() == st.GetCreatedAt() { // answered, and not yet recorded
				l.note(&l.unseen)
				return nil
			}
			l.fault(restarted, "container %s of pod %s is %v before anybody has stopped it (%v)", name, p.name, st.GetState(), err)
		}
		if err := p.n.client.StopContainer(ctx, id, 20*time.Second); err != nil {
			return err
		}
	}
	st, err := p.ended(ctx, id)
	if err != nil {
		return err
	}
	if l.bothDie && st.GetReason() == "Unknown" {
		l.note(&l.unseen)
		return nil
	}
	if int(st.GetExitCode()) != code {
		l.fault(wrongExits, "container %s of pod %s ended with %d (%s: %s), want %d", name, p.name, st.GetExitCode(), st.GetReason(), st.GetMessage(), code)
	}
	n, rest, err := lines(log)
	if err != nil || count >= 0 && n != count || stop != (len(rest) == 1 && rest[0] == "goodbye") {
		l.fault(lostLog, "container %s of pod %s: %d lines and %q, want %d (%v)", name, p.name, n, rest, count, err)
	}
	return nil
}

// lost says that a pod is not ready any more.
func (p *sandbox) lost(ctx context.Context) bool {
	st, err := p.n.client.PodSandboxStatus(ctx, p.id)
	return err == nil && st.GetState() == cri.PodSandboxState_SANDBOX_NOTREADY
}

// resident is a container that lives through a whole test.
type resident struct {
	p    *sandbox
	id   string
	proc string
}

func settle(ctx context.Context, n *machine, l *ledger, count int) (all []*resident, err error) {
	for i := range count {
		p, err := runPod(ctx, n, fmt.Sprintf("resident-%d", i))
		if err != nil {
			return all, err
		}
		r := &resident{p: p}
		all = append(all, r)
		l.take(p.ip, p.name)
		if r.id, err = p.create(ctx, "main", longScript(40+i)); err != nil {
			return all, err
		}
		if err := p.n.client.StartContainer(ctx, r.id); err != nil {
			return all, err
		}
		if r.proc, err = r.process(); err != nil {
			return all, err
		}
	}
	return all, nil
}

// process is the container's first process: the oldest in its group.
func (r *resident) process() (string, error) {
	pids, err := harness.CgroupPids(r.p.group(r.id))
	if err != nil {
		return "", err
	}
	oldest, at := 0, uint64(0)
	for _, pid := range pids {
		if st, err := harness.StartTime(pid); err == nil && (oldest == 0 || st < at) {
			oldest, at = pid, st
		}
	}
	if oldest == 0 {
		return "", fmt.Errorf("pod %s has no process", r.p.name)
	}
	return fmt.Sprintf("pid %d, started at tick %d", oldest, at), nil
}

// leave checks that a resident has lived on undisturbed, and ends it.
func (r *resident) leave(ctx context.Context, l *ledger, code int) error {
	if proc, err := r.process(); err != nil || proc != r.proc {
		l.fault(restarted, "%s is %s, was %s (%v)", r.p.name, proc, r.proc, err)
	}
	st, err := r.p.n.client.ContainerStatus(ctx, r.id)
	if err != nil {
		return err
	}
	if st.GetState() != cri.ContainerState_CONTAINER_RUNNING {
		l.fault(restarted, "%s is %s, code %d", r.p.name, st.GetState(), st.GetExitCode())
	}
	if ip, err := r.p.address(ctx); err != nil || ip != r.p.ip {
		l.fault(restarted, "%s has address %q, had %q (%v)", r.p.name, ip, r.p.ip, err)
	}
	out := ""
	if err := harness.Again(ctx, "ExecSync", func(ctx context.Context) error {
		x, err := r.p.n.client.Runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: r.id, Cmd: []string{"echo", "here"}, Timeout: 10})
		out = string(x.GetStdout())
		return err
	}); err != nil || out != "here\n" {
		l.fault(otherFaults, "exec in %s says %q (%v)", r.p.name, out, err)
	}
	if err := r.p.n.client.StopContainer(ctx, r.id, 20*time.Second); err != nil {
		return err
	}
	if st, err = r.p.ended(ctx, r.id); err != nil {
		return err
	}
	if int(st.GetExitCode()) != code {
		l.fault(wrongExits, "%s ended with %d (%s: %s), want %d", r.p.name, st.GetExitCode(), st.GetReason(), st.GetMessage(), code)
	}
	n, rest, err := lines(r.p.config.GetLogDirectory() + "/main.log")
	if err != nil || n == 0 || len(rest) != 1 || rest[0] != "goodbye" {
		l.fault(lostLog, "%s: %d lines, then %q (%v)", r.p.name, n, rest, err)
	}
	return r.p.remove(ctx)
}

// under runs workers' pods and residents while disturb goes on, and checks all of them at its end.
func under(t *testing.T, workers int, l *ledger, disturb func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	t.Cleanup(func() { evict(t) })
	residents, err := settle(ctx, node, l, 3)
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				one, cancel := context.WithTimeout(ctx, 90*time.Second)
				if err := life(one, node, l, fmt.Sprintf("w%d-%d", w, i)); err != nil {
					l.fault(otherFaults, "%v", err)
				}
				cancel()
			}
		})
	}
	if err := disturb(ctx); err != nil {
		l.fault(otherFaults, "%v", err)
		cancel() // nobody need wait for a daemon that does not come back
	}
	close(stop)
	wg.Wait()
	for i, r := range residents {
		if err := r.leave(ctx, l, 40+i); err != nil {
			l.fault(otherFaults, "%s: %v", r.p.name, err)
		}
	}
	t.Logf("%d pods lived meanwhile; a dying shim took %d starts along", l.lives, l.startErr)
	if len(l.faults) > 0 {
		t.Errorf("%d faults:\n  %s", len(l.faults), strings.Join(l.faults[:min(len(l.faults), 30)], "\n  "))
	}
	node.clean(t)
}

// evict removes what a failed test left, for the next one.
func evict(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	select {
	case <-node.process().Done():
		if _, err := node.start(ctx, nil); err != nil {
			t.Fatal(err)
		}
	default:
	}
	if err := node.client.RemoveAll(ctx); err != nil {
		t.Error(err)
	}
	if err := errors.Join(os.RemoveAll(node.lab.PodLogs()), node.lab.RemovePodParent("")); err != nil {
		t.Error(err)
	}
}
