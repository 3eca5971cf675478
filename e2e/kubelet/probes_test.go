package kubelet

import (
	"testing"

	"github.com/berth-project/berth/e2e/harness"
)

// TestLiveness: a container whose liveness probe fails is stopped and started again.
func TestLiveness(t *testing.T) {
	t.Parallel()
	p := apply(t, "liveness", `
terminationGracePeriodSeconds: 1
containers:
- name: sick
  image: BUSYBOX
  command: [sh, -c, "touch /tmp/well; trap 'exit 9' TERM; while :; do usleep 50000; done"]
  livenessProbe: {exec: {command: [cat, /tmp/well]}, periodSeconds: 1, failureThreshold: 1}
`)
	seen := p.ready()
	if _, err := node.kubelet.Run(seen, "sick", "rm", "/tmp/well"); err != nil {
		t.Fatal(err)
	}
	seen = p.await("it was restarted", func(p *harness.Pod) bool { return status(p, "sick").RestartCount == 1 && p.Ready() })
	if last := status(seen, "sick").LastState.Terminated; last == nil || last.ExitCode != 9 {
		t.Errorf("last state is %+v, want code 9", last)
	}
}

// TestReadiness: by HTTP; readiness comes and goes without a restart.
func TestReadiness(t *testing.T) {
	t.Parallel()
	p := apply(t, "readiness", `
terminationGracePeriodSeconds: 0
containers:
- name: web
  image: registry.k8s.io/berth/web:1
  imagePullPolicy: IfNotPresent
  readinessProbe: {httpGet: {path: /, port: 80}, periodSeconds: 1}
- name: flag
  image: BUSYBOX
  command: [sleep, "600"]
  readinessProbe: {exec: {command: [cat, /tmp/ready]}, periodSeconds: 1, failureThreshold: 1}
`)
	seen := p.await("the server is ready", func(p *harness.Pod) bool { return status(p, "web").Ready })
	if seen.Ready() {
		t.Error("the pod is ready without its flag")
	}
	for _, step := range []struct {
		cmd   []string
		ready bool
	}{{[]string{"touch", "/tmp/ready"}, true}, {[]string{"rm", "/tmp/ready"}, false}} {
		if _, err := node.kubelet.Run(seen, "flag", step.cmd...); err != nil {
			t.Fatal(err)
		}
		seen = p.await("readiness follows the flag", func(p *harness.Pod) bool { return p.Ready() == step.ready })
	}
	if n := status(seen, "flag").RestartCount; n != 0 {
		t.Errorf("it was restarted %d times", n)
	}
}

// TestStartup: the liveness probe, which would fail at first, waits for the startup probe.
func TestStartup(t *testing.T) {
	t.Parallel()
	p := apply(t, "startup", `
terminationGracePeriodSeconds: 0
containers:
- name: slow
  image: BUSYBOX
  command: [sh, -c, "sleep 3; touch /tmp/up; sleep 600"]
  startupProbe: {exec: {command: [cat, /tmp/up]}, periodSeconds: 1, failureThreshold: 20}
  livenessProbe: {exec: {command: [cat, /tmp/up]}, periodSeconds: 1, failureThreshold: 1}
`)
	if n := status(p.ready(), "slow").RestartCount; n != 0 {
		t.Errorf("it was restarted %d times", n)
	}
}
