package kubelet

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/tools/remotecommand"

	"github.com/berth-project/berth/e2e/harness"
)

const nodeIP = "192.0.2.1" // see harness.Isolate

// web is a pod with the test images' server.
const web = `
terminationGracePeriodSeconds: 0
containers:
- name: web
  image: registry.k8s.io/berth/web:1
  imagePullPolicy: IfNotPresent
  readinessProbe: {httpGet: {path: /, port: 80}, periodSeconds: 1}
`

// fetches tries a URL until it answers with the server's page.
func (p *pod) fetches(url string) {
	p.t.Helper()
	if err := harness.Until(p.ctx, 50*time.Millisecond, nil, func() error {
		b, err := harness.Fetch(url)
		if err == nil && !strings.Contains(string(b), "Welcome to nginx!") {
			err = fmt.Errorf("%s says %q", url, b)
		}
		return err
	}); err != nil {
		p.t.Error(err)
	}
}

// TestHostPort: the port is served on the node's address and on loopback, from the node and from another pod, and
// no longer when the pod is gone.
func TestHostPort(t *testing.T) {
	t.Parallel()
	p := apply(t, "host-port", web+"  ports: [{containerPort: 80, hostPort: 11380}]\n")
	client := apply(t, "host-port-client", `
terminationGracePeriodSeconds: 0
containers: [{name: client, image: registry.k8s.io/e2e-test-images/busybox:1.29-2, imagePullPolicy: IfNotPresent, command: [sleep, "600"]}]
`)
	seen, other := p.ready(), client.ready()
	p.fetches("http://" + seen.Status.PodIP)
	p.fetches("http://127.0.0.1:11380")
	p.fetches("http://" + nodeIP + ":11380")
	for _, to := range []string{nodeIP + " 11380", seen.Status.PodIP + " 80"} {
		var out bytes.Buffer // the static busybox's wget does not resolve even addresses, its nc does
		_, err := node.kubelet.Exec(p.ctx, "spdy", other, "client", []string{"sh", "-c", "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 " + to},
			remotecommand.StreamOptions{Stdout: &out})
		if err != nil || !strings.Contains(out.String(), "Welcome to nginx!") {
			t.Errorf("another pod gets %q from %s (%v)", out.String(), to, err)
		}
	}
	p.remove()
	if b, err := harness.Fetch("http://127.0.0.1:11380"); err == nil {
		t.Errorf("the host port still answers: %q", b)
	}
}

// TestHostNetwork: the pod has the node's network.
func TestHostNetwork(t *testing.T) {
	t.Parallel()
	p := apply(t, "host-network", `
hostNetwork: true
terminationGracePeriodSeconds: 0
containers:
- name: web
  image: registry.k8s.io/berth/web:1
  imagePullPolicy: IfNotPresent
  args: ["-p", "11381"]
  readinessProbe: {httpGet: {path: /, port: 11381}, periodSeconds: 1}
- name: look
  image: BUSYBOX
  command: [sleep, "600"]
`)
	seen := p.ready()
	p.fetches("http://" + nodeIP + ":11381")
	if out, err := node.kubelet.Run(seen, "look", "ip", "-o", "addr"); err != nil || !strings.Contains(out, nodeIP+"/24") {
		t.Errorf("it sees the addresses %q, want the node's %s (%v)", out, nodeIP, err)
	}
}

// TestSharedPID: containers of a pod see each other's processes, and the pod's init is pid 1.
func TestSharedPID(t *testing.T) {
	t.Parallel()
	p := apply(t, "shared-pid", `
shareProcessNamespace: true
terminationGracePeriodSeconds: 0
containers:
- name: one
  image: BUSYBOX
  command: [sleep, "11001"]
- name: two
  image: BUSYBOX
  command: [sleep, "11002"]
`)
	seen := p.ready()
	out, err := node.kubelet.Run(seen, "one", "ps", "-o", "pid,args")
	if err != nil || !strings.Contains(out, "sleep 11001") || !strings.Contains(out, "sleep 11002") {
		t.Errorf("the first container sees %q (%v)", out, err)
	}
	if out, err := node.kubelet.Run(seen, "two", "cat", "/proc/1/cmdline"); err != nil || strings.Contains(out, "sleep") {
		t.Errorf("pid 1 is %q, want the pod's init (%v)", out, err)
	}
}

// TestExec over both protocols: output, errors, input, a terminal of the right size, and the exit code.
func TestExec(t *testing.T) {
	t.Parallel()
	p := apply(t, "exec", `
terminationGracePeriodSeconds: 0
containers: [{name: c, image: registry.k8s.io/e2e-test-images/busybox:1.29-2, imagePullPolicy: IfNotPresent, command: [sleep, "600"]}]
`)
	seen := p.ready()
	for _, over := range []string{"spdy", "websocket"} {
		ctx, cancel := context.WithTimeout(p.ctx, 15*time.Second)
		var out, errOut bytes.Buffer
		code, err := node.kubelet.Exec(ctx, over, seen, "c", []string{"sh", "-c", "cat; echo to stderr >&2; exit 6"},
			remotecommand.StreamOptions{Stdin: strings.NewReader("through\n"), Stdout: &out, Stderr: &errOut})
		if err != nil || code != 6 || out.String() != "through\n" || errOut.String() != "to stderr\n" {
			t.Errorf("%s: code %d, output %q and %q (%v)", over, code, out.String(), errOut.String(), err)
		}
		out.Reset()
		sizes := make(chan remotecommand.TerminalSize, 1)
		sizes <- remotecommand.TerminalSize{Width: 123, Height: 45}
		code, err = node.kubelet.Exec(ctx, over, seen, "c", []string{"sh", "-c", "usleep 500000; stty size; tty"},
			remotecommand.StreamOptions{Stdin: strings.NewReader(""), Stdout: &out, Tty: true, TerminalSizeQueue: queue(sizes)})
		if err != nil || code != 0 || !strings.Contains(out.String(), "45 123") || !strings.Contains(out.String(), "/dev/pts/") {
			t.Errorf("%s: terminal: code %d, output %q (%v)", over, code, out.String(), err)
		}
		cancel()
	}
}

type queue <-chan remotecommand.TerminalSize

// Next implements remotecommand.TerminalSizeQueue.
func (q queue) Next() *remotecommand.TerminalSize {
	s, ok := <-q
	if !ok {
		return nil
	}
	return &s
}

// TestPortForward carries HTTP to a pod's port.
func TestPortForward(t *testing.T) {
	t.Parallel()
	p := apply(t, "port-forward", web)
	seen := p.ready()
	local, stop, err := node.kubelet.PortForward(p.ctx, seen, 80)
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	for range 3 {
		p.fetches(fmt.Sprintf("http://127.0.0.1:%d", local))
	}
}

// TestUserNamespace: root in the pod is nobody on the node.
func TestUserNamespace(t *testing.T) {
	t.Parallel()
	p := apply(t, "userns", `
hostUsers: false
terminationGracePeriodSeconds: 0
containers:
- name: c
  image: BUSYBOX
  command: [sh, -c, "touch /data/mine && sleep 600"]
  volumeMounts: [{name: data, mountPath: /data}]
volumes: [{name: data, emptyDir: {}}]
`)
	seen := p.ready()
	out, err := node.kubelet.Run(seen, "c", "cat", "/proc/self/uid_map")
	f := strings.Fields(out)
	if err != nil || len(f) != 3 || f[0] != "0" || f[1] == "0" || f[2] != "65536" {
		t.Errorf("uid_map is %q (%v), want 65536 users from a high one", out, err)
	}
	if out, err := node.kubelet.Run(seen, "c", "stat", "-c", "%u", "/data/mine"); err != nil || out != "0\n" {
		t.Errorf("its own file belongs to %q inside (%v), want 0", out, err)
	}
}

// TestStats: the kubelet's summary has the pod's CPU and memory.
func TestStats(t *testing.T) {
	t.Parallel()
	p := apply(t, "stats", web)
	seen := p.ready()
	if err := harness.Until(p.ctx, 200*time.Millisecond, nil, func() error {
		s, err := node.kubelet.Summary(seen)
		if err == nil && (s.CPU.UsageCoreNanoSeconds == 0 || s.Memory.WorkingSetBytes == 0) {
			err = fmt.Errorf("summary is %+v", s)
		}
		return err
	}); err != nil {
		t.Error(err)
	}
}
