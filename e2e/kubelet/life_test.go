package kubelet

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/e2e/harness"
)

// TestInitAndSidecar: init containers run in order, one with restartPolicy Always stays beside the main container
// and is stopped after it.
func TestInitAndSidecar(t *testing.T) {
	t.Parallel()
	p := apply(t, "init-sidecar", `
restartPolicy: Never
initContainers:
- name: first
  image: BUSYBOX
  command: [sh, -c, "echo first >/work/order"]
  volumeMounts: [{name: work, mountPath: /work}]
- name: sidecar
  image: BUSYBOX
  restartPolicy: Always
  command: [sh, -c, "echo sidecar >>/work/order; trap 'echo sidecar stops; exit 0' TERM; while :; do usleep 20000; done"]
  startupProbe: {exec: {command: [grep, sidecar, /work/order]}, periodSeconds: 1}
  volumeMounts: [{name: work, mountPath: /work}]
- name: second
  image: BUSYBOX
  command: [sh, -c, "echo second >>/work/order"]
  volumeMounts: [{name: work, mountPath: /work}]
containers:
- name: main
  image: BUSYBOX
  command: [sh, -c, "echo main >>/work/order; cat /work/order"]
  volumeMounts: [{name: work, mountPath: /work}]
volumes: [{name: work, emptyDir: {}}]
`)
	seen := p.await("it has succeeded", func(p *harness.Pod) bool { return p.Status.Phase == "Succeeded" })
	if got, want := p.logs(seen, "main", ""), "first\nsidecar\nsecond\nmain\n"; got != want {
		t.Errorf("the order was %q, want %q", got, want)
	}
	if got := p.logs(seen, "sidecar", ""); got != "sidecar stops\n" {
		t.Errorf("the sidecar's log is %q", got)
	}
	for _, c := range []string{"first", "second", "sidecar", "main"} {
		if st := status(seen, c).State.Terminated; st == nil || st.ExitCode != 0 || st.Reason != "Completed" {
			t.Errorf("%s ended as %+v, want 0 and Completed", c, st)
		}
	}
}

// TestTerminationMessage: from its file, and from the end of the log if there is none.
func TestTerminationMessage(t *testing.T) {
	t.Parallel()
	p := apply(t, "termination-message", `
restartPolicy: Never
containers:
- name: file
  image: BUSYBOX
  command: [sh, -c, "echo -n done with it >/dev/done; exit 4"]
  terminationMessagePath: /dev/done
- name: log
  image: BUSYBOX
  command: [sh, -c, "echo the last word; exit 5"]
  terminationMessagePolicy: FallbackToLogsOnError
`)
	seen := p.await("it has failed", func(p *harness.Pod) bool { return p.Status.Phase == "Failed" })
	for _, want := range []struct {
		name, message string
		code          int
	}{{"file", "done with it", 4}, {"log", "the last word\n", 5}} {
		st := status(seen, want.name).State.Terminated
		if st == nil || st.ExitCode != want.code || st.Message != want.message || st.Reason != "Error" {
			t.Errorf("%s ended as %+v, want code %d, reason Error and message %q", want.name, st, want.code, want.message)
		}
	}
}

// TestOOMKilled: a container that needs more than its limit is killed, with the reason; its neighbour is not.
func TestOOMKilled(t *testing.T) {
	t.Parallel()
	p := apply(t, "oom", `
restartPolicy: Never
containers:
- name: hog
  image: BUSYBOX
  command: [memhog, "200"]
  resources: {limits: {memory: 32Mi}}
- name: child
  image: BUSYBOX
  command: [sh, -c, "memhog 200; exit $?"]
  resources: {limits: {memory: 32Mi}}
- name: neighbour
  image: BUSYBOX
  command: [sh, -c, "sleep 4"]
  resources: {limits: {memory: 32Mi}}
`)
	seen := p.await("it has failed", func(p *harness.Pod) bool { return p.Status.Phase == "Failed" })
	for name, reason := range map[string]string{"hog": "OOMKilled", "child": "OOMKilled", "neighbour": "Completed"} {
		st := status(seen, name).State.Terminated
		if st == nil || st.Reason != reason || (reason == "OOMKilled") != (st.ExitCode == 137) {
			t.Errorf("%s ended as %+v, want %s", name, st, reason)
		}
	}
}

// TestBackOff: a container that keeps ending is restarted, ever more slowly.
func TestBackOff(t *testing.T) {
	t.Parallel()
	p := apply(t, "back-off", `
containers:
- name: failing
  image: BUSYBOX
  command: [sh, -c, "exit 7"]
`)
	seen := p.await("it waits to be restarted", func(p *harness.Pod) bool {
		c := status(p, "failing")
		return c.RestartCount >= 1 && c.State.Waiting != nil && c.State.Waiting.Reason == "CrashLoopBackOff"
	})
	if last := status(seen, "failing").LastState.Terminated; last == nil || last.ExitCode != 7 {
		t.Errorf("last state is %+v, want code 7", last)
	}
}

// TestStopWithGrace: a container gets its stop signal and the time its pod allows, and the code it exits with is
// what is recorded; one that does not listen is killed when the time is over. A preStop hook runs before.
func TestStopWithGrace(t *testing.T) {
	t.Parallel()
	p := apply(t, "grace", `
terminationGracePeriodSeconds: 4
containers:
- name: polite
  image: BUSYBOX
  command: [sh, -c, "trap 'usleep 1500000; echo goodbye; exit 0' TERM; echo up; while :; do usleep 20000; done"]
  lifecycle: {preStop: {exec: {command: [sh, -c, "echo hook >/proc/1/fd/1"]}}}
- name: deaf
  image: BUSYBOX
  command: [sh, -c, "trap '' TERM; echo up; while :; do usleep 20000; done"]
`)
	seen := p.ready()
	for _, c := range []string{"polite", "deaf"} {
		if err := harness.Until(p.ctx, 20*time.Millisecond, nil, func() error {
			if got := p.logs(seen, c, ""); got != "up\n" {
				return fmt.Errorf("%s has said %q", c, got)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	start := time.Now()
	if err := node.kubelet.Delete("grace"); err != nil {
		t.Fatal(err)
	}
	ended := func(name string) *cri.ContainerStatus {
		for _, c := range p.containers(t) {
			if c.GetMetadata().GetName() != name {
				continue
			}
			st, err := node.client.Runtime.ContainerStatus(context.Background(), &cri.ContainerStatusRequest{ContainerId: c.GetId()})
			if err == nil && st.GetStatus().GetState() == cri.ContainerState_CONTAINER_EXITED {
				return st.GetStatus()
			}
		}
		return nil
	}
	for name, want := range map[string]struct {
		code     int32
		min, max time.Duration
		log      string
	}{
		"polite": {0, 1400 * time.Millisecond, 4 * time.Second, "up\nhook\ngoodbye\n"},
		"deaf":   {137, 3 * time.Second, 9 * time.Second, "up\n"},
	} {
		var st *cri.ContainerStatus
		if err := harness.Until(p.ctx, 20*time.Millisecond, nil, func() error {
			if st = ended(name); st == nil {
				return fmt.Errorf("%s has not ended", name)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		took := time.Unix(0, st.GetFinishedAt()).Sub(start)
		if st.GetExitCode() != want.code || took < want.min || took > want.max {
			t.Errorf("%s ended with %d after %v, want %d after %v to %v", name, st.GetExitCode(), took, want.code, want.min, want.max)
		}
		lines, err := logLines(st.GetLogPath())
		if err != nil && !os.IsNotExist(err) { // the kubelet removes the logs of a pod that is gone
			t.Error(err)
		}
		if got := strings.Join(append(lines, ""), "\n"); err == nil && got != want.log {
			t.Errorf("%s has said %q, want %q", name, got, want.log)
		}
	}
}
