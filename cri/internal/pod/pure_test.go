package pod

import (
	"errors"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/cri/internal/cgroup"
	"github.com/berth-project/berth/proto/errs"
	v1 "github.com/berth-project/berth/proto/shim/v1"
)

// ledger is a Records in memory.
type ledger map[string][]byte

func (l ledger) Put(kind, id string, b []byte) error { l[kind+"/"+id] = b; return nil }
func (l ledger) Delete(kind, id string) error        { delete(l, kind+"/"+id); return nil }
func (l ledger) Quarantine(kind, id string, _ error) { delete(l, kind+"/"+id) }
func (l ledger) Load(string) (map[string][]byte, error) {
	return nil, errors.New("not asked for")
}

func TestRecords(t *testing.T) {
	l := ledger{}
	m := New(Config{Features: Features{BootID: "b1"}}, l, nil, nil)
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	p := &Pod{ID: "p1", Config: podConfig("x"), Handler: "kata", CreatedAt: at, st: PodState{
		Ready: true, Network: "n", IPs: []string{"10.0.0.1"}, Result: []byte(`{"a":1}`), Resized: []byte{1}, Undone: true,
	}}
	c := &Container{
		ID: "c1", PodID: "p1", Config: containerConfig("c", "a"), ImageID: busyboxID, CreatedAt: at, User: &cri.LinuxContainerUser{Uid: 7},
		Stop: unix.SIGQUIT, StopSet: true, LogPath: "/l", seccomp: "sha256:1", join: []string{"net"}, pidOf: "c0", volumes: map[string]string{"c1/0": busyboxID},
		st: ContainerState{
			StartedAt: at, FinishedAt: at.Add(1), Pid: 9, Exit: v1.Exit{Code: 137, Signal: 9, At: at, OOMKilled: true}, Reason: "OOMKilled",
			Resources: &cri.LinuxContainerResources{CpuShares: 2},
		},
	}
	if err := errors.Join(m.savePod(p), m.saveContainer(c)); err != nil {
		t.Fatal(err)
	}
	gotP, boot, err := decodePod(l["pod/p1"])
	if err != nil || boot != "b1" || gotP.ID != "p1" || gotP.Handler != "kata" || !gotP.CreatedAt.Equal(at) || !proto.Equal(gotP.Config, p.Config) {
		t.Errorf("%+v %s %v", gotP, boot, err)
	}
	if st := gotP.State(); !st.Ready || !st.Undone || st.Network != "n" || st.IPs[0] != "10.0.0.1" || string(st.Result) != `{"a":1}` || st.Resized[0] != 1 {
		t.Errorf("%+v", st)
	}
	gotC, boot, err := decodeContainer(l["container/c1"])
	if err != nil || boot != "b1" || gotC.PodID != "p1" || gotC.ImageID != busyboxID || gotC.Stop != unix.SIGQUIT || !gotC.StopSet ||
		gotC.LogPath != "/l" || gotC.seccomp != "sha256:1" || gotC.join[0] != "net" || gotC.pidOf != "c0" || gotC.volumes["c1/0"] != busyboxID ||
		!proto.Equal(gotC.Config, c.Config) || gotC.User.GetUid() != 7 {
		t.Errorf("%+v %s %v", gotC, boot, err)
	}
	if st := gotC.State(); st.CRI() != isExited || st.Exit != c.st.Exit || st.Pid != 9 || st.Reason != "OOMKilled" || st.Resources.GetCpuShares() != 2 {
		t.Errorf("%+v", st)
	}
	// a later daemon's record is refused, not half understood
	for _, kind := range []string{"pod/p1", "container/c1"} {
		b := strings.Replace(string(l[kind]), `"version":1`, `"version":2`, 1)
		_, _, perr := decodePod([]byte(b))
		_, _, cerr := decodeContainer([]byte(b))
		if perr == nil || cerr == nil || !strings.Contains(perr.Error(), "version 2") {
			t.Errorf("%s of version 2: %v, %v", kind, perr, cerr)
		}
	}
	if _, _, err := decodePod([]byte(`{"version":1,"config":"/w=="}`)); err == nil {
		t.Error("a torn config was taken")
	}
}

func TestContainerState(t *testing.T) {
	at := time.Now()
	for _, c := range []struct {
		st   ContainerState
		want cri.ContainerState
	}{
		{ContainerState{}, isCreated},
		{ContainerState{StartedAt: at}, isRunning},
		{ContainerState{StartedAt: at, FinishedAt: at}, isExited},
		{ContainerState{FinishedAt: at}, isExited},
	} {
		if got := c.st.CRI(); got != c.want {
			t.Errorf("%+v: %v", c.st, got)
		}
	}
	for _, c := range []struct {
		exit v1.Exit
		want string
	}{
		{v1.Exit{}, "Completed"},
		{v1.Exit{Code: 1}, "Error"},
		{v1.Exit{Code: 137, OOMKilled: true}, "OOMKilled"},
		{v1.Exit{Code: 255, Unknown: true}, "Unknown"},
	} {
		if got := reason(c.exit); got != c.want {
			t.Errorf("%+v: %s", c.exit, got)
		}
	}
}

func TestFind(t *testing.T) {
	all := map[string]*int{"abc": new(int), "abd": new(int), "x": new(int)}
	for id, want := range map[string]error{
		"abc": nil, "x": nil, "abd": nil, "": errs.InvalidArgument, "ab": errs.InvalidArgument, "q": errs.NotFound, "abcd": errs.NotFound,
	} {
		if _, err := find(all, "thing", id); !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", id, err, want)
		}
	}
	if o, err := find(map[string]*int{"a": all["x"], "ab": all["abc"]}, "thing", "a"); err != nil || o != all["x"] {
		t.Errorf("a whole id that starts another: %v", err)
	}
}

func TestMerge(t *testing.T) {
	old := &cri.LinuxContainerResources{
		CpuShares: 2, CpuQuota: 5, MemoryLimitInBytes: 7, CpusetCpus: "0", OomScoreAdj: 3,
		Unified: map[string]string{"memory.high": "1", "cpu.weight": "2"},
	}
	before := proto.Clone(old)
	got := merge(old, &cri.LinuxContainerResources{
		CpuShares: 9, CpusetMems: "0-1", MemorySwapLimitInBytes: -1, Unified: map[string]string{"memory.high": "max"},
		HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB", Limit: 1}},
	})
	want := &cri.LinuxContainerResources{
		CpuShares: 9, CpuQuota: 5, MemoryLimitInBytes: 7, MemorySwapLimitInBytes: -1, CpusetCpus: "0", CpusetMems: "0-1", OomScoreAdj: 3,
		Unified:        map[string]string{"memory.high": "max", "cpu.weight": "2"},
		HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB", Limit: 1}},
	}
	if !proto.Equal(got, want) || !proto.Equal(old, before) {
		t.Errorf("%v from %v", got, old)
	}
}

// TestMergeMemory: a memory limit that changes alone keeps what may be swapped; the CRI's swap limit is of both together.
func TestMergeMemory(t *testing.T) {
	type r = cri.LinuxContainerResources
	for _, c := range []struct {
		old, new  *r
		mem, swap int64
	}{
		{&r{MemoryLimitInBytes: 10, MemorySwapLimitInBytes: 15}, &r{MemoryLimitInBytes: 20}, 20, 25},
		{&r{MemoryLimitInBytes: 10, MemorySwapLimitInBytes: 15}, &r{MemoryLimitInBytes: 4}, 4, 9},
		{&r{MemoryLimitInBytes: 10, MemorySwapLimitInBytes: 15}, &r{MemoryLimitInBytes: 20, MemorySwapLimitInBytes: 20}, 20, 20},
		{&r{MemoryLimitInBytes: 10, MemorySwapLimitInBytes: 15}, &r{MemorySwapLimitInBytes: 30}, 10, 30},
		{&r{MemoryLimitInBytes: 10, MemorySwapLimitInBytes: -1}, &r{MemoryLimitInBytes: 20}, 20, -1},
		{&r{MemoryLimitInBytes: 10}, &r{MemoryLimitInBytes: 20}, 20, 0},
	} {
		if got := merge(c.old, c.new); got.GetMemoryLimitInBytes() != c.mem || got.GetMemorySwapLimitInBytes() != c.swap {
			t.Errorf("%v and %v are %v", c.old, c.new, got)
		}
	}
}

func TestQuantity(t *testing.T) {
	for s, want := range map[string]int64{"": 0, "0": 0, "1000": 1000, "10M": 10e6, "512k": 512e3, "1Gi": 1 << 30, "1.5M": 15e5, "2Ti": 2 << 40} {
		if got, err := quantity(s); got != want || err != nil {
			t.Errorf("%q: %d, %v", s, got, err)
		}
	}
	for _, s := range []string{"-1", "M", "1.5", "10MB", "x", "NaNM", "InfM", "-InfG", "1e400M", "2000T", " 1", "0x1M", "9223372036854775808"} {
		if got, err := quantity(s); !errors.Is(err, errs.InvalidArgument) {
			t.Errorf("%q: %d, %v", s, got, err)
		}
	}
}

func TestResolvConf(t *testing.T) {
	got, err := resolvConf(&cri.DNSConfig{Servers: []string{"10.0.0.10", "fd00::a"}, Searches: []string{"a.svc", "b"}, Options: []string{"ndots:5"}})
	if want := "search a.svc b\nnameserver 10.0.0.10\nnameserver fd00::a\noptions ndots:5\n"; err != nil || got != want {
		t.Errorf("%q, %v", got, err)
	}
	for _, c := range []*cri.DNSConfig{
		{Servers: []string{"1.1.1.1\nnameserver 6.6.6.6"}},
		{Searches: []string{"a\rb"}},
		{Options: []string{"x\x00"}},
		{Searches: []string{""}},
	} {
		if got, err := resolvConf(c); !errors.Is(err, errs.InvalidArgument) {
			t.Errorf("%v became %q, %v", c, got, err)
		}
	}
}

func TestLogPath(t *testing.T) {
	for _, c := range []struct {
		dir, name, want string
		ok              bool
	}{
		{"/var/log/pods/x", "c/0.log", "/var/log/pods/x/c/0.log", true},
		{"", "c/0.log", "", true},
		{"/var/log", "", "", true},
		{"/var/log", "../../etc/passwd", "", false},
		{"/var/log", "/etc/passwd", "", false},
		{"/var/log", "a/../../b", "", false},
		{"/var/log", "a\nb", "", false},
		{"var/log", "a", "", false},
	} {
		if got, err := logPath(c.dir, c.name); got != c.want || (err == nil) != c.ok {
			t.Errorf("%q, %q: %q, %v", c.dir, c.name, got, err)
		}
	}
}

func TestStopSignal(t *testing.T) {
	for _, c := range []struct {
		config cri.Signal
		image  string
		want   unix.Signal
		chosen bool
	}{
		{0, "", unix.SIGTERM, false},
		{0, "SIGQUIT", unix.SIGQUIT, true},
		{0, "nonsense", unix.SIGTERM, false},
		{cri.Signal_SIGNAL_SIGUSR1, "SIGQUIT", unix.SIGUSR1, true},
		{cri.Signal_SIGNAL_SIGRTMINPLUS3, "", 37, true},
		{cri.Signal_SIGNAL_SIGRTMAXMINUS2, "", 62, true},
	} {
		got, chosen := stopSignal(&cri.ContainerConfig{StopSignal: c.config}, c.image)
		if got != c.want || chosen != c.chosen {
			t.Errorf("%v, %q: %d, %v", c.config, c.image, got, chosen)
		}
	}
	for n := range cri.Signal_name { // every signal the API has means one of ours
		if got, chosen := stopSignal(&cri.ContainerConfig{StopSignal: cri.Signal(n)}, ""); n != 0 && (!chosen || got == 0) {
			t.Errorf("%v is unknown", cri.Signal(n))
		}
	}
}

// TestCheckPodSELinux: a pod that asks for a label is refused before anything of it is made.
func TestCheckPodSELinux(t *testing.T) {
	for _, active := range []bool{true, false} {
		m := New(Config{DefaultPod: "/pods", Cgroups: &cgroup.Layout{}, Features: Features{SELinux: active}}, nil, nil, nil)
		config := podConfig("x")
		if err := m.checkPod(config, ""); err != nil {
			t.Error(err)
		}
		config.Linux.SecurityContext.SelinuxOptions = &cri.SELinuxOption{Type: "container_t"}
		if err := m.checkPod(config, ""); !errors.Is(err, errs.FailedPrecondition) || !strings.Contains(err.Error(), "selinux_options ::container_t:") {
			t.Errorf("SELinux active: %v: %v", active, err)
		}
	}
}

func TestCheckPod(t *testing.T) {
	m := New(Config{OCI: map[string]OCIRuntime{"kata": {}}, DefaultPod: "/pods", Cgroups: &cgroup.Layout{}}, nil, nil, nil)
	opts := func(c *cri.PodSandboxConfig) *cri.NamespaceOption {
		return c.Linux.SecurityContext.NamespaceOptions
	}
	userns := func(mode cri.NamespaceMode, uids, gids []*cri.IDMapping) func(*cri.PodSandboxConfig) {
		return func(c *cri.PodSandboxConfig) {
			opts(c).UsernsOptions = &cri.UserNamespace{Mode: mode, Uids: uids, Gids: gids}
		}
	}
	sysctl := func(k, v string) func(*cri.PodSandboxConfig) {
		return func(c *cri.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{k: v} }
	}
	hostNet := func(c *cri.PodSandboxConfig) { opts(c).Network = cri.NamespaceMode_NODE }
	one := []*cri.IDMapping{{HostId: 65536, Length: 65536}}
	for _, c := range []struct {
		what    string
		change  []func(*cri.PodSandboxConfig)
		handler string
		says    string // "" if it is fine
	}{
		{what: "plain"},
		{what: "built-in handler by name", handler: "berth"},
		{what: "configured handler", handler: "kata"},
		{what: "unknown handler", handler: "gvisor", says: "runtime_handler"},
		{what: "no name", change: []func(*cri.PodSandboxConfig){func(c *cri.PodSandboxConfig) { c.Metadata.Name = "" }}, says: "metadata"},
		{what: "no uid", change: []func(*cri.PodSandboxConfig){func(c *cri.PodSandboxConfig) { c.Metadata.Uid = "" }}, says: "metadata"},
		{what: "cgroup above", change: []func(*cri.PodSandboxConfig){func(c *cri.PodSandboxConfig) { c.Linux.CgroupParent = "/../x" }}, says: "cgroup_parent"},
		{what: "long name", change: []func(*cri.PodSandboxConfig){func(c *cri.PodSandboxConfig) { c.Hostname = strings.Repeat("x", 65) }}, says: "hostname"},
		{what: "two lines of name", change: []func(*cri.PodSandboxConfig){func(c *cri.PodSandboxConfig) { c.Hostname = "a\nb" }}, says: "hostname"},
		{what: "bandwidth", change: []func(*cri.PodSandboxConfig){func(c *cri.PodSandboxConfig) {
			c.Annotations = map[string]string{"kubernetes.io/egress-bandwidth": "fast"}
		}}, says: "bandwidth"},
		{what: "userns", change: []func(*cri.PodSandboxConfig){userns(cri.NamespaceMode_POD, one, one)}},
		{what: "the host's userns", change: []func(*cri.PodSandboxConfig){userns(cri.NamespaceMode_NODE, nil, nil)}},
		{what: "userns of a container", change: []func(*cri.PodSandboxConfig){userns(cri.NamespaceMode_CONTAINER, one, one)}, says: "mode"},
		{what: "userns without maps", change: []func(*cri.PodSandboxConfig){userns(cri.NamespaceMode_POD, nil, one)}, says: "uids"},
		{what: "userns of two maps", change: []func(*cri.PodSandboxConfig){userns(cri.NamespaceMode_POD, one, append(one, one...))}, says: "gids"},
		{what: "userns without root", change: []func(*cri.PodSandboxConfig){userns(cri.NamespaceMode_POD, []*cri.IDMapping{{ContainerId: 1, HostId: 1, Length: 1}}, one)}, says: "uids"},
		{what: "userns mapped differently", change: []func(*cri.PodSandboxConfig){userns(cri.NamespaceMode_POD, one, []*cri.IDMapping{{HostId: 1, Length: 65536}})}, says: "alike"},
		{what: "sysctl of the network", change: []func(*cri.PodSandboxConfig){sysctl("net.ipv4.ip_forward", "1")}},
		{what: "with slashes", change: []func(*cri.PodSandboxConfig){sysctl("net/ipv4/ip_forward", "1")}},
		{what: "sysctl of the host's network", change: []func(*cri.PodSandboxConfig){sysctl("net.ipv4.ip_forward", "1"), hostNet}, says: "network namespace"},
		{what: "sysctl of ipc", change: []func(*cri.PodSandboxConfig){sysctl("kernel.shmmax", "1")}},
		{what: "sysctl of the host's ipc", change: []func(*cri.PodSandboxConfig){sysctl("kernel.sem", "1"), func(c *cri.PodSandboxConfig) { opts(c).Ipc = cri.NamespaceMode_NODE }}, says: "IPC"},
		{what: "sysctl of the node", change: []func(*cri.PodSandboxConfig){sysctl("kernel.core_pattern", "|/x")}, says: "whole node"},
		{what: "sysctl that climbs", change: []func(*cri.PodSandboxConfig){sysctl("net/../kernel/core_pattern", "|/x")}, says: "no sysctl"},
		{what: "sysctl that adds (CVE-2022-0811)", change: []func(*cri.PodSandboxConfig){sysctl("kernel.shm_rmid_forced", "1+kernel.core_pattern=|/x\n")}, says: "no sysctl"},
	} {
		config := podConfig("x")
		for _, change := range c.change {
			change(config)
		}
		err := m.checkPod(config, c.handler)
		if c.says == "" && err != nil || c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says) || !errors.Is(err, errs.InvalidArgument)) {
			t.Errorf("%s: %v, want %q", c.what, err, c.says)
		}
	}
}

// TestSlowSubscriber: who does not read is cut off, and nobody else waits.
func TestSlowSubscriber(t *testing.T) {
	m := New(Config{}, nil, nil, nil)
	slow, endSlow := m.Subscribe()
	fast, endFast := m.Subscribe()
	defer endSlow()
	read := 0
	for range eventBacklog + 1 {
		m.publish(cri.ContainerEventType_CONTAINER_STARTED_EVENT, "p", "c")
		<-fast
		read++
	}
	n := 0
	for range slow { // ends: it was closed
		n++
	}
	if n != eventBacklog || read != eventBacklog+1 {
		t.Errorf("the slow one got %d, the fast one %d", n, read)
	}
	endFast()
	if _, ok := <-fast; ok {
		t.Error("an ended subscription goes on")
	}
	endFast()
	m.publish(cri.ContainerEventType_CONTAINER_STARTED_EVENT, "p", "c")
}

// TestEventsEnd: a daemon that stops keeps no watch open, and takes no new one.
func TestEventsEnd(t *testing.T) {
	m := New(Config{}, nil, nil, nil)
	before, endBefore := m.Subscribe()
	m.EndEvents()
	after, endAfter := m.Subscribe()
	for what, events := range map[string]<-chan Event{"an old": before, "a new": after} {
		select {
		case _, open := <-events:
			if open {
				t.Errorf("%s watch got an event", what)
			}
		default:
			t.Errorf("%s watch is open", what)
		}
	}
	m.publish(cri.ContainerEventType_CONTAINER_STARTED_EVENT, "p", "c")
	endBefore()
	endAfter()
	m.EndEvents()
}
