package test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	v1 "github.com/berth-project/berth/proto/shim/v1"
)

// profile is as long as the default profile of the peers: 350 calls allowed by name.
func profile(b testing.TB) json.RawMessage {
	b.Helper()
	names, err := os.ReadFile("../internal/seccomp/names.go")
	if err != nil {
		b.Fatal(err)
	}
	p := specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Architectures: []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32, specs.ArchAARCH64}}
	rule := specs.LinuxSyscall{Action: specs.ActAllow}
	for line := range lines(string(names)) {
		if len(rule.Names) < 350 {
			rule.Names = append(rule.Names, line)
		}
	}
	p.Syscalls = []specs.LinuxSyscall{rule}
	raw, err := json.Marshal(p)
	if err != nil {
		b.Fatal(err)
	}
	return raw
}

func BenchmarkRunPod(b *testing.B) {
	s := launchShim(b)
	for b.Loop() {
		id := unique("pod")
		var reply v1.RunPodReply
		for _, f := range s.must(v1.MethodRunPod, v1.RunPod{ID: id, Namespaces: []string{"net", "ipc", "uts"}, Hostname: "bench"}, nil, &reply) {
			_ = f.Close()
		}
		b.StopTimer()
		s.must(v1.MethodRemovePod, v1.PodRef{ID: id}, nil, nil)
		b.StartTimer()
	}
}

// BenchmarkStart is a container of a pod with everything an ordinary one has, from the request to the answer; its
// process is a static program that ends at once.
func BenchmarkStart(b *testing.B) {
	s := launchShim(b)
	layer := rootfs(b)
	s.must(v1.MethodPutSeccomp, v1.PutSeccomp{Digest: "sha256:bench", Profile: profile(b)}, nil, nil)
	pod := unique("pod")
	var reply v1.RunPodReply
	for _, f := range s.must(v1.MethodRunPod, v1.RunPod{ID: pod, Namespaces: []string{"net", "ipc", "uts"}}, nil, &reply) {
		_ = f.Close()
	}
	for b.Loop() {
		b.StopTimer()
		c := s.container(spec("true"), layer)
		c.start.Pod, c.start.Join, c.start.Seccomp = pod, []string{"net", "ipc", "uts"}, "sha256:bench"
		b.StartTimer()
		if err := c.try(); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		c.wait()
		c.delete()
		c.cleanup()
		b.StartTimer()
	}
}

// BenchmarkExec is ExecSync's part: start true in a running container and wait for its end.
func BenchmarkExec(b *testing.B) {
	s := launchShim(b)
	c := s.container(spec("sleep", "1000"), rootfs(b)).run()
	for b.Loop() {
		id, err := s.exec(c, execProcess("true"), nil, nil)
		if err != nil {
			b.Fatal(err)
		}
		s.exited(c.id, id)
		s.mu.Lock()
		s.events = s.events[:0]
		s.mu.Unlock()
	}
	c.kill(unix.SIGKILL)
}

// TestMemory measures what an idle container costs the shim.
func TestMemory(t *testing.T) {
	if raceEnabled || testing.Short() {
		t.Skip("measures the ordinary build")
	}
	s := launchShim(t)
	layer := rootfs(t)
	const n = 128
	before := pss(t, s.cmd.Process.Pid)
	for range n {
		s.container(spec("sleep", "1000"), layer).run()
	}
	after := pss(t, s.cmd.Process.Pid)
	if os.Getenv("BERTH_TEST_LONG") != "" {
		time.Sleep(25 * time.Second)
		b, _ := os.ReadFile(filepath.Join("/proc", itoa(s.cmd.Process.Pid), "smaps_rollup"))
		t.Logf("%s", b)
	}
	t.Logf("PSS of the shim: %d KB empty, %d KB with %d containers, %d KB each", before, after, n, (after-before)/n)
	if after > 12<<10 {
		t.Errorf("%d KB for %d containers", after, n)
	}
}

func pss(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("/proc", itoa(pid), "smaps_rollup"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range lines2(string(b)) {
		var kb int
		if n, _ := sscan(line, "Pss: %d kB", &kb); n == 1 {
			return kb
		}
	}
	return 0
}
