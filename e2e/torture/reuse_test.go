package torture

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/e2e/harness"
)

// TestPidReuse ends containers and gives their pids to strangers at once. Whatever is then asked of the container, with the
// daemon or the shim killed meanwhile or not, no stranger is sent a signal and the container has ended as it did.
func TestPidReuse(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	t.Cleanup(func() { evict(t) })
	p, err := runPod(ctx, node, "reuse")
	if err != nil {
		t.Fatal(err)
	}
	count := times(12, 1000)
	for i := range count {
		if err := p.reuse(ctx, i, count); err != nil {
			t.Fatalf("%d: %v", i, err)
		}
		total.add(pidReuses, 1)
	}
	if err := p.remove(ctx); err != nil {
		t.Error(err)
	}
	node.clean(t)
}

// reuse is one container's end and what comes after. Kills of the daemon and of the shim come every few times.
func (p *sandbox) reuse(ctx context.Context, i, count int) (err error) {
	id, err := p.create(ctx, fmt.Sprint("one-", i), "while :; do sleep 1000; done")
	if err != nil {
		return err
	}
	if err := p.n.client.StartContainer(ctx, id); err != nil {
		return err
	}
	pid, err := p.first(ctx, id)
	if err != nil {
		return err
	}
	often := max(count/25, 4)
	daemon, shim := i%often == 1, i%often == 3
	if daemon {
		node.process().Kill()
	}
	if shim {
		killShim()
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		return err
	}
	if err := harness.Until(ctx, time.Millisecond, nil, func() error {
		if err := stranger(pid); !errors.Is(err, unix.EEXIST) {
			return errors.Join(err)
		}
		return fmt.Errorf("pid %d is not free", pid)
	}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dismiss(pid)) }()
	if daemon {
		total.add(daemonKills, 1)
		if _, err := node.start(ctx, nil); err != nil {
			return err
		}
	}
	if err := p.ask(ctx, id, i); err != nil {
		return err
	}
	if how := harmed(pid); how != "" {
		total.add(otherFaults, 1)
		return fmt.Errorf("the stranger that has the container's pid %d: %s", pid, how)
	}
	return nil
}

// first is the pid of a container's first process.
func (p *sandbox) first(ctx context.Context, id string) (pid int, err error) {
	err = harness.Until(ctx, time.Millisecond, nil, func() error {
		pids, err := harness.CgroupPids(p.group(id))
		if err == nil && len(pids) == 0 {
			err = fmt.Errorf("container %s has no process", id)
		}
		if err == nil {
			pid = pids[0]
		}
		return err
	})
	return pid, err
}

// ask does to a container that has ended what would signal it, and looks how it ended.
func (p *sandbox) ask(ctx context.Context, id string, i int) error {
	if i%2 == 0 {
		if err := p.n.client.StopContainer(ctx, id, time.Second); err != nil {
			return err
		}
	} else {
		_, err := node.client.Runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}, Timeout: 1})
		if code := status.Code(err); code == codes.OK {
			return errors.New("a container that has ended takes an exec")
		}
	}
	st, err := p.ended(ctx, id)
	if err != nil {
		return err
	}
	if st.GetExitCode() != 137 {
		total.add(wrongExits, 1)
		return fmt.Errorf("it ended with %d (%s)", st.GetExitCode(), st.GetReason())
	}
	return harness.Again(ctx, "RemoveContainer", func(ctx context.Context) error {
		_, err := node.client.Runtime.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: id})
		return err
	})
}
