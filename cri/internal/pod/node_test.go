package pod

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/cri/internal/cgroup"
	"github.com/berth-project/berth/cri/internal/image"
	"github.com/berth-project/berth/cri/internal/network"
	"github.com/berth-project/berth/cri/internal/shims"
	"github.com/berth-project/berth/cri/internal/store"
	"github.com/berth-project/berth/proto/errs"
	v1 "github.com/berth-project/berth/proto/shim/v1"
)

// supervisor is the real berth-shim, built once.
var supervisor string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "berth-pod-test-")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir) //nolint:errcheck // test
		supervisor = filepath.Join(dir, "berth-shim")
		cmd := exec.Command("go", "build", "-o", supervisor, "github.com/berth-project/berth/shim/cmd/berth-shim")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build berth-shim: %v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

// node is a manager with everything real below it but images and the network. It checks at its end that nothing
// is left of the pods that were removed.
type node struct {
	*Manager
	t      *testing.T
	dir    string
	own    string // cgroup of the test
	boot   string
	groups *cgroup.Layout
	images *library
	net    *wires
	store  *store.Store
	pool   *shims.Pool
	log    *slog.Logger

	uncollect func()
}

var nodes atomic.Int64

func newNode(t *testing.T) *node {
	t.Helper()
	groups, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	n := &node{
		t: t, dir: t.TempDir(), groups: groups, images: newLibrary(t), net: &wires{attached: map[string]bool{}}, boot: "boot-1",
		own: fmt.Sprintf("/berth-pod-test-%d-%d", os.Getpid(), nodes.Add(1)),
		log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
	n.up()
	t.Cleanup(n.end)
	return n
}

// up starts the daemon's parts on whatever an earlier up has left.
func (n *node) up() {
	n.t.Helper()
	var err error
	if n.store, err = store.Open(filepath.Join(n.dir, "records"), n.log); err != nil {
		n.t.Fatal(err)
	}
	n.Manager = New(Config{
		Root: filepath.Join(n.dir, "lib"), State: filepath.Join(n.dir, "run"), Cgroups: n.groups, DefaultPod: n.own + "/pods", CDIDirs: []string{n.cdiDir()},
		Features: Features{BootID: n.boot, LastCap: 40}, Log: n.log,
	}, n.store, n.images, n.net)
	n.pool = shims.New(shims.Config{
		Binary: supervisor, Dir: filepath.Join(n.dir, "run", "shims"), PodsPer: 8, Cgroups: n.groups, Group: n.own,
	}, n.log, n.SupervisorExited, func(v1.OOM) {})
	n.SetShims(n.pool)
	n.collect()
	if err := n.Recover(n.t.Context()); err != nil {
		n.t.Fatal(err)
	}
}

// collect does what the daemon does beside the manager, until down.
func (n *node) collect() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func(p *shims.Pool) {
		defer close(done)
		_ = p.Collect(ctx) // ends with ctx
	}(n.pool)
	n.uncollect = func() { cancel(); <-done }
}

func (n *node) down() {
	n.t.Helper()
	n.uncollect()
	n.pool.Close()
	n.Close()
	if err := n.store.Close(); err != nil {
		n.t.Error(err)
	}
}

func (n *node) restart() {
	n.t.Helper()
	n.down()
	n.up()
}

// end removes what the test has left, and then nothing may be left.
func (n *node) end() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for _, p := range n.Pods() {
		if err := n.Remove(ctx, p.ID); err != nil {
			n.t.Errorf("remove pod: %v", err)
		}
	}
	n.down()
	for _, dir := range []string{"lib/containers", "run/pods", "run/exits", "run/images", "records/pod", "records/container"} {
		if left, _ := filepath.Glob(filepath.Join(n.dir, dir, "*")); len(left) > 0 {
			n.t.Errorf("left behind: %v", left)
		}
	}
	if b, _ := os.ReadFile("/proc/self/mountinfo"); strings.Contains(string(b), n.dir) {
		n.t.Errorf("mounts are left below %s", n.dir)
	}
	if left := n.groups.Pids(n.own + "/pods"); len(left) > 0 {
		n.t.Errorf("processes are left: %v", left)
	}
	n.net.mu.Lock()
	if len(n.net.attached) > 0 || len(n.net.pinned) > 0 {
		n.t.Errorf("attachments are left: %v %v", n.net.attached, n.net.pinned)
	}
	n.net.mu.Unlock()
	if held := n.images.held(); len(held) > 0 {
		n.t.Errorf("images are held: %v", held)
	}
	// the shims go last: they outlive the daemon by design
	if err := n.groups.Kill(n.own); err != nil {
		n.t.Error(err)
	}
	for range 100 {
		if len(n.groups.Pids(n.own)) == 0 {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err := n.groups.Remove(n.own); err != nil {
		n.t.Error(err)
	}
}

// podConfig is a pod as the kubelet makes one.
func podConfig(name string) *cri.PodSandboxConfig {
	return &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: name, Namespace: "default", Uid: "uid-" + name}, Hostname: name,
		DnsConfig: &cri.DNSConfig{Servers: []string{"10.0.0.10"}},
		Linux: &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{
			NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER},
		}},
	}
}

func containerConfig(name string, command ...string) *cri.ContainerConfig {
	return &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: name}, Image: &cri.ImageSpec{Image: "busybox"}, Command: command,
		Linux: &cri.LinuxContainerConfig{
			Resources:       &cri.LinuxContainerResources{},
			SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}},
		},
	}
}

func (n *node) run(name string) string {
	n.t.Helper()
	id, err := n.Run(n.t.Context(), podConfig(name), "")
	if err != nil {
		n.t.Fatal(err)
	}
	return id
}

func (n *node) start(pod, name string, command ...string) string {
	n.t.Helper()
	id, err := n.Create(n.t.Context(), pod, containerConfig(name, command...))
	if err != nil {
		n.t.Fatal(err)
	}
	if err := n.Start(n.t.Context(), id); err != nil {
		n.t.Fatal(err)
	}
	return id
}

func (n *node) await(id string) ContainerState {
	n.t.Helper()
	c, err := n.Container(id)
	if err != nil {
		n.t.Fatal(err)
	}
	select {
	case <-c.Done():
	case <-time.After(10 * time.Second):
		n.t.Fatalf("container %s does not end", id)
	}
	return c.State()
}

// library is the one image there is: busybox in one layer.
type library struct {
	mu      sync.Mutex
	layer   string
	tag     string // the id that "busybox" stands for, or ""
	holders map[string]string
}

func newLibrary(t *testing.T) *library {
	t.Helper()
	l := &library{layer: t.TempDir(), tag: busyboxID, holders: map[string]string{}}
	b, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"bin", "etc", "tmp", "proc", "sys", "dev", "data"} {
		err = errors.Join(err, os.MkdirAll(filepath.Join(l.layer, d), 0o755))
	}
	err = errors.Join(err, os.WriteFile(filepath.Join(l.layer, "bin/busybox"), b, 0o755),
		os.WriteFile(filepath.Join(l.layer, "data/inside"), []byte("inside\n"), 0o644),
		os.WriteFile(filepath.Join(l.layer, "etc/passwd"), []byte("root:x:0:0::/root:\nweb:x:1000:1000::/:\n"), 0o644))
	for _, a := range []string{"sh", "sleep", "cat", "echo", "true", "false", "kill"} {
		err = errors.Join(err, os.Link(filepath.Join(l.layer, "bin/busybox"), filepath.Join(l.layer, "bin", a)))
	}
	if err != nil {
		t.Fatal(err)
	}
	return l
}

const busyboxID = "sha256:b0"

func (l *library) Get(ref string) (*image.Image, error) {
	id := ref
	if ref == "busybox" {
		id = l.tag
	}
	if id == "" || id != l.tag {
		return nil, errs.NotFound.Errorf("image %q", ref)
	}
	return &image.Image{ID: id, Config: &ocispec.Image{Config: ocispec.ImageConfig{Cmd: []string{"/bin/sh"}}}}, nil
}

func (l *library) Use(holder, id string) (image.Rootfs, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.holders[holder] = id
	return image.Rootfs{Lower: []string{l.layer}}, nil
}

func (l *library) Release(holder string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.holders, holder)
}

func (l *library) Retain(holders map[string]string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.holders = maps.Clone(holders)
}

func (l *library) held() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Collect(maps.Keys(l.holders))
}

// wires is a network that keeps books. fail, if set, is asked before each verb.
type wires struct {
	mu       sync.Mutex
	attached map[string]bool
	pinned   map[string]*os.File
	adds     int
	dels     int // that succeeded
	fail     func(verb string) error
}

func (w *wires) may(verb string) error {
	if w.fail == nil {
		return nil
	}
	return w.fail(verb)
}

func (w *wires) Attach(_ context.Context, a network.Attachment) (network.Result, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.adds++
	if err := w.may("add"); err != nil {
		return network.Result{}, err
	}
	w.attached[a.PodID] = true
	return network.Result{Network: "test", IPs: []string{"10.0.0.2", "fd00::2"}, Raw: []byte(`{}`)}, nil
}

func (w *wires) Detach(_ context.Context, a network.Attachment) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.may("del"); err != nil {
		return err
	}
	w.dels++
	delete(w.attached, a.PodID)
	return nil
}

func (w *wires) Check(context.Context, network.Attachment) error { return nil }

func (w *wires) GC(context.Context, []string) error { return nil }

func (w *wires) Pin(id string, ns *os.File) (string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.pinned == nil {
		w.pinned = map[string]*os.File{}
	}
	if w.pinned[id] == nil {
		fd, err := unix.FcntlInt(ns.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return "", err
		}
		w.pinned[id] = os.NewFile(uintptr(fd), "namespace")
	}
	return fmt.Sprintf("/proc/self/fd/%d", w.pinned[id].Fd()), nil
}

func (w *wires) Path(id string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.pinned[id] == nil {
		return ""
	}
	return fmt.Sprintf("/proc/self/fd/%d", w.pinned[id].Fd())
}

func (w *wires) Unpin(id string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if f := w.pinned[id]; f != nil {
		delete(w.pinned, id)
		return f.Close()
	}
	return nil
}
