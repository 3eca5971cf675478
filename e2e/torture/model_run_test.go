package torture

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// shrinkLimit bounds the search for a shorter run that fails as well.
const shrinkLimit = 3 * time.Minute

// TestModel holds the daemon against a model of the CRI through random operations, repeated, cancelled, done by several at
// once, and with kills in their midst. A failing run is shortened before it is shown. BERTH_SEED repeats one.
func TestModel(t *testing.T) {
	seed := uint64(1)                     // the same run for everybody who changes something
	if os.Getenv("BERTH_TORTURE") != "" { // and ever new ones for who looks for faults
		seed = uint64(time.Now().UnixNano()) //nolint:gosec // positive
	}
	if s := os.Getenv("BERTH_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	steps := times(250, 10_000)
	t.Logf("BERTH_SEED=%d, %d steps", seed, steps)
	t.Cleanup(func() { evict(t) })
	ops := plan(seed, steps)
	if done, err := walk(ops); err != nil {
		t.Errorf("step %d: %v", done, err)
		t.Errorf("the shortest run found that fails:\n  %s", shorten(ops[:done+1]))
		return
	}
	node.clean(t)
}

// shorten leaves out operations for as long as the rest still fails.
func shorten(ops []operation) string {
	last := error(nil)
	end := time.Now().Add(shrinkLimit)
	for chunk := len(ops) / 2; chunk > 0 && time.Now().Before(end); {
		smaller := false
		for at := 0; at+chunk < len(ops) && time.Now().Before(end); { // the last one is where it failed
			try := slices.Concat(ops[:at], ops[at+chunk:])
			if done, err := walk(try); err != nil {
				ops, last, smaller = try[:done+1], err, true
				continue
			}
			at += chunk
		}
		if !smaller || chunk > len(ops)/2 {
			chunk /= 2
		}
	}
	var out []string
	for _, o := range ops {
		out = append(out, o.String())
	}
	return strings.Join(out, "\n  ") + fmt.Sprintf("\nwith: %v", last)
}

// walk does a run on a node without pods, and leaves it without any. It returns the step that failed.
func walk(ops []operation) (done int, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute)
	defer cancel()
	w := &walker{n: node}
	defer func() { err = errors.Join(err, w.tidy(ctx)) }()
	for i, o := range ops {
		total.add(modelSteps, 1)
		if err := w.step(ctx, o); err != nil {
			return i, fmt.Errorf("%s: %w", o, err)
		}
	}
	return len(ops), nil
}

type walker struct {
	n    *machine
	pods [modelPods]modelPod
	last [modelPods]string // the id of the pod before, for calls that concern none
	died time.Time         // when a supervisor was killed last
}

func (w *walker) tidy(ctx context.Context) error {
	err := w.n.client.RemoveAll(ctx)
	for i := range w.pods {
		err = errors.Join(err, os.RemoveAll(w.sandbox(i).GetLogDirectory()), w.n.lab.RemovePodParent(w.sandbox(i).GetMetadata().GetName()))
	}
	return err
}

func (w *walker) sandbox(i int) *cri.PodSandboxConfig {
	name := fmt.Sprintf("model-%d", i)
	return &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: name, Namespace: "torture", Uid: name, Attempt: w.pods[i].attempt},
		LogDirectory: filepath.Join(w.n.lab.PodLogs(), name),
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent:    w.n.lab.PodParent(name),
			SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}},
		},
	}
}

// step does an operation, with what disturbs it, and compares its answer and the node's state with the model's.
func (w *walker) step(ctx context.Context, o operation) error {
	p := &w.pods[o.pod]
	if o.verb == runSandbox {
		if err := os.MkdirAll(w.sandbox(o.pod).GetLogDirectory(), 0o755); err != nil {
			return err
		}
	}
	want := p.expect(o)
	id, err := w.disturbed(ctx, o)
	code := status.Code(err)
	if !slices.Contains(want, code) {
		return w.forgive(ctx, o, fmt.Errorf("%s in a pod that is %s, container %s: %w, want %v", o.verb, p.state, p.containers[o.container].state, err, want))
	}
	if code == codes.OK {
		if err := w.identify(o, id); err != nil {
			return err
		}
	}
	return w.compare(ctx)
}

// identify enters an operation's success into the model.
func (w *walker) identify(o operation, id string) error {
	p := &w.pods[o.pod]
	had := p.id
	if o.verb == create {
		had = p.containers[o.container].id
	}
	if (o.verb == runSandbox || o.verb == create) && had != "" && id != had {
		return fmt.Errorf("another one was made: %s, there was %s", id, had)
	}
	if o.verb == removeSandbox && p.id != "" {
		w.last[o.pod] = p.id
	}
	p.succeed(o)
	switch o.verb {
	case runSandbox:
		p.id = id
	case create:
		p.containers[o.container].id = id
	}
	return nil
}

// forgive takes what a client has to live with when the daemon or a supervisor died in the middle of its call: a pod that
// was begun is listed NOTREADY, a start whose answer was lost has started, one whose supervisor died has failed.
func (w *walker) forgive(ctx context.Context, o operation, fault error) error {
	p := &w.pods[o.pod]
	orphaned := o.with == shimDies || time.Since(w.died) < 5*time.Second
	if (o.with == nothing || o.with == duplicated) && !orphaned {
		return fault
	}
	switch o.verb {
	case runSandbox:
		list, err := w.n.client.Runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
		if err != nil {
			return err
		}
		for _, s := range list.GetItems() {
			if s.GetMetadata().GetName() == w.sandbox(o.pod).GetMetadata().GetName() && s.GetState() == cri.PodSandboxState_SANDBOX_NOTREADY && p.state == absent {
				p.state, p.id = notReady, s.GetId()
				return w.compare(ctx)
			}
		}
	case start:
		c := &p.containers[o.container]
		st, err := w.n.client.Runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: c.id})
		if err != nil || c.state != created || p.state != ready {
			return errors.Join(fault, err)
		}
		if st.GetStatus().GetStartedAt() != 0 && st.GetStatus().GetReason() != "StartError" {
			p.succeed(o)
			return w.compare(ctx)
		}
		if orphaned && st.GetStatus().GetState() == cri.ContainerState_CONTAINER_EXITED {
			c.state, c.codes = exited, []int32{128}
			return w.compare(ctx)
		}
	case execSync:
		if orphaned && p.containers[o.container].state == running {
			return nil // the end of an exec may go with its supervisor
		}
	}
	return fault
}

// disturbed does an operation and what is to happen meanwhile, until it has a definite answer.
func (w *walker) disturbed(ctx context.Context, o operation) (string, error) {
	wait := func() { time.Sleep(time.Duration(o.after) * time.Millisecond) }
	switch o.with {
	case cancelled:
		short, cancel := context.WithTimeout(ctx, time.Duration(o.after)*time.Millisecond)
		defer cancel()
		id, err := w.call(short, o)
		if code := status.Code(err); code != codes.DeadlineExceeded && code != codes.Canceled {
			return id, err
		}
	case duplicated:
		return w.together(ctx, o)
	case daemonDies, shimDies:
		if o.with == daemonDies { // what both hold is lost when both are gone: a successor has adopted it by then
			time.Sleep(time.Until(w.died.Add(500 * time.Millisecond)))
		}
		var wg sync.WaitGroup
		var killed error
		wg.Go(func() {
			wait()
			if o.with == shimDies {
				killShim()
				w.died = time.Now()
			} else {
				_, killed = killDaemon(ctx)
			}
		})
		id, err := w.repeat(ctx, o)
		wg.Wait()
		return id, errors.Join(err, killed)
	}
	return w.repeat(ctx, o)
}

// repeat asks again while there is no daemon.
func (w *walker) repeat(ctx context.Context, o operation) (id string, err error) {
	for range 500 {
		id, err = w.call(ctx, o)
		if code := status.Code(err); code != codes.Unavailable && code != codes.Canceled {
			return id, err
		}
		time.Sleep(10 * time.Millisecond)
	}
	return id, err
}

// together is four callers at once. All must be told the same, but those of Create and Start that come when it is done.
func (w *walker) together(ctx context.Context, o operation) (string, error) {
	var wg sync.WaitGroup
	ids, all := make([]string, 4), make([]error, 4)
	for i := range all {
		wg.Go(func() { ids[i], all[i] = w.call(ctx, o) })
	}
	wg.Wait()
	at := slices.IndexFunc(all, func(err error) bool { return err == nil })
	if at < 0 {
		return "", all[0]
	}
	for i, err := range all {
		late := status.Code(err) == codes.FailedPrecondition && o.verb == start
		if err != nil && !late || err == nil && ids[i] != ids[at] {
			return "", fmt.Errorf("one of four callers got %q, %w; another %q", ids[i], err, ids[at])
		}
	}
	return ids[at], nil
}

// call is one call of the CRI. What is absent is called by an id that was, or never was, there.
func (w *walker) call(ctx context.Context, o operation) (id string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	p, rt := w.pods[o.pod], w.n.client.Runtime
	pod, container := p.id, p.containers[o.container].id
	if pod == "" {
		pod = w.last[o.pod] + strings.Repeat("0", 64-len(w.last[o.pod]))
	}
	if container == "" {
		container = strings.Repeat("0", 64)
	}
	switch o.verb {
	case runSandbox:
		r, err := rt.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: w.sandbox(o.pod)})
		return r.GetPodSandboxId(), err
	case stopSandbox:
		_, err = rt.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: pod})
	case removeSandbox:
		_, err = rt.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: pod})
	case create:
		r, err := rt.CreateContainer(ctx, w.createRequest(o, pod))
		return r.GetContainerId(), err
	case start:
		_, err = rt.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: container})
	case stopContainer:
		_, err = rt.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: container, Timeout: 10})
	case removeContainer:
		_, err = rt.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: container})
	case execSync:
		var r *cri.ExecSyncResponse
		r, err = rt.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: container, Cmd: []string{"echo", "here"}, Timeout: 10})
		if err == nil && string(r.GetStdout()) != "here\n" && !p.containers[o.container].short {
			err = status.Errorf(codes.DataLoss, "exec said %q, exit code %d", r.GetStdout(), r.GetExitCode())
		}
	}
	return "", err
}

func (w *walker) createRequest(o operation, pod string) *cri.CreateContainerRequest {
	script := fmt.Sprintf("trap 'exit %d' TERM; while :; do usleep 3000; done", longCode)
	if o.short {
		script = fmt.Sprintf("usleep 20000; exit %d", shortCode)
	}
	name := fmt.Sprintf("c%d", o.container)
	return &cri.CreateContainerRequest{PodSandboxId: pod, SandboxConfig: w.sandbox(o.pod), Config: &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: name}, Image: &cri.ImageSpec{Image: busybox}, Command: []string{"sh", "-c", script}, LogPath: name + ".log",
		Linux: &cri.LinuxContainerConfig{
			Resources:       &cri.LinuxContainerResources{},
			SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}},
		},
	}}
}

// compare holds the lists of pods and containers against the model. Containers that end by themselves may have.
func (w *walker) compare(ctx context.Context) error {
	pods, err := w.n.client.Runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	containers, err := w.n.client.Runtime.ListContainers(ctx, &cri.ListContainersRequest{})
	if err != nil {
		return err
	}
	listed := map[string]string{}
	for _, p := range pods.GetItems() {
		listed[p.GetId()] = p.GetState().String()
	}
	for _, c := range containers.GetContainers() {
		listed[c.GetId()] = c.GetState().String()
	}
	var wrong []error
	for i := range w.pods {
		wrong = append(wrong, w.comparePod(ctx, i, listed))
	}
	for id, st := range listed {
		wrong = append(wrong, fmt.Errorf("%s is listed, %s, and should not be there", id, st))
	}
	return errors.Join(wrong...)
}

// comparePod takes what it has met out of listed.
func (w *walker) comparePod(ctx context.Context, i int, listed map[string]string) error {
	p := &w.pods[i]
	if p.state == absent {
		return nil
	}
	want := map[state]string{ready: "SANDBOX_READY", notReady: "SANDBOX_NOTREADY"}[p.state]
	if listed[p.id] != want {
		return fmt.Errorf("pod p%d (%s) is %q, want %s", i, p.id, listed[p.id], want)
	}
	delete(listed, p.id)
	for k := range p.containers {
		c := &p.containers[k]
		if c.state == absent {
			continue
		}
		got := listed[c.id]
		if c.state == running && c.short && got == "CONTAINER_EXITED" {
			c.state = exited
		}
		want := map[state]string{created: "CONTAINER_CREATED", running: "CONTAINER_RUNNING", exited: "CONTAINER_EXITED"}[c.state]
		if got != want {
			return fmt.Errorf("container c%d of p%d (%s) is %q, want %s", k, i, c.id, got, want)
		}
		delete(listed, c.id)
		if c.state != exited {
			continue
		}
		st, err := w.n.client.Runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: c.id})
		if err != nil {
			return err
		}
		if code := st.GetStatus().GetExitCode(); !slices.Contains(c.codes, code) {
			return fmt.Errorf("container c%d of p%d (%s) ended with %d (%s), want one of %v", k, i, c.id, code, st.GetStatus().GetReason(), c.codes)
		}
	}
	return nil
}
