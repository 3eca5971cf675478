package test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/proto/errs"
	v1 "github.com/berth-project/berth/proto/shim/v1"
)

func TestSeccompDenies(t *testing.T) {
	s := launchShim(t)
	layer := rootfs(t)
	enosys := uint(unix.ENOSYS)
	profile, err := json.Marshal(specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow, Architectures: []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32, specs.ArchAARCH64},
		Syscalls: []specs.LinuxSyscall{
			{Names: []string{"mkdir", "mkdirat"}, Action: specs.ActErrno},
			{Names: []string{"sethostname"}, Action: specs.ActErrno, ErrnoRet: &enosys},
			{Names: []string{"chmod", "fchmodat"}, Action: specs.ActKillProcess},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		s.must(v1.MethodPutSeccomp, v1.PutSeccomp{Digest: "sha256:x", Profile: profile}, nil, nil)
	}
	for _, nnp := range []bool{true, false} {
		sp := spec("sh", "-c", "mkdir /x; hostname y; grep Seccomp: /proc/self/status; chmod 1 /bin; echo not reached >&2")
		sp.Process.NoNewPrivileges = nnp
		c := s.container(sp, layer)
		c.start.Seccomp = "sha256:x"
		c.run().wait()
		log := c.log()
		for _, want := range []string{"Operation not permitted", "Function not implemented", "Seccomp:\t2"} {
			if !strings.Contains(log, want) {
				t.Errorf("no %q in %q", want, log)
			}
		}
		if _, err := os.Stat(filepath.Join(c.dir, "upper/x")); err == nil {
			t.Error("mkdir worked")
		}
	}
	c := s.container(spec("sleep", "100"), layer)
	c.start.Seccomp = "sha256:x"
	c.run()
	if out, code := s.execute(c, "mkdir", "/y"); code == 0 || !strings.Contains(out, "not permitted") {
		t.Errorf("exec without the filter: %d %q", code, out)
	}
}

// TestHygiene looks for what must not reach a container's process.
func TestHygiene(t *testing.T) {
	s := launchShim(t)
	c := s.container(spec("sleep", "100"), rootfs(t)).run()
	time.Sleep(50 * time.Millisecond)
	fds, err := os.ReadDir("/proc/" + itoa(c.reply.Pid) + "/fd")
	if err != nil || len(fds) != 3 {
		t.Errorf("the container holds %d descriptors, %v", len(fds), err)
	}
	out, _ := s.execute(c, "sh", "-c", "ls /proc/self/fd | wc -l; readlink /proc/self/exe; readlink /proc/self/cwd; cat /proc/self/stat | cut -d' ' -f4")
	if got := strings.Fields(out); len(got) != 4 || got[0] != "4" || !strings.HasPrefix(got[1], "/bin/") || got[2] != "/" {
		t.Errorf("exec sees %q (3 streams and ls's own directory are meant)", out)
	}
	status, err := os.ReadFile("/proc/" + itoa(c.reply.Pid) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"CapInh:\t0000000000000000", "CapAmb:\t0000000000000000", "SigIgn:\t0000000000000000", "SigBlk:\t0000000000000000", "NoNewPrivs:\t1"} {
		if !strings.Contains(string(status), want) {
			t.Errorf("no %q in the status:\n%s", want, status)
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	if strings.Contains(string(mounts), c.dir) {
		t.Error("the container's rootfs is in the host's mount table")
	}
	shimStat, _ := os.Stat("/proc/" + itoa(s.cmd.Process.Pid) + "/mem")
	if shimStat != nil && shimStat.Mode().Perm()&0o077 != 0 {
		t.Errorf("the shim's memory has mode %v", shimStat.Mode())
	}
}

// TestPropagation mounts below volumes from the host and from the container.
func TestPropagation(t *testing.T) {
	s := launchShim(t)
	base := t.TempDir()
	mount := func(src, dst, fs string, flags uintptr) {
		if err := unix.Mount(src, dst, fs, flags, ""); err != nil {
			t.Fatal(err)
		}
	}
	// the shim opens sources in the host's mount namespace, so the shared mount is made there
	mount("berth-test", base, "tmpfs", 0)
	t.Cleanup(func() { _ = unix.Unmount(base, unix.MNT_DETACH) })
	mount("", base, "", unix.MS_SHARED)
	for _, d := range []string{"private", "slave", "shared"} {
		if err := os.MkdirAll(filepath.Join(base, "late-"+d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	sp := spec("sleep", "100")
	sp.Linux.RootfsPropagation = "rshared"
	caps := append(defaultCaps(), "CAP_SYS_ADMIN")
	sp.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
	for _, p := range []string{"private", "slave", "shared"} {
		sp.Mounts = append(sp.Mounts, specs.Mount{Destination: "/" + p, Type: "bind", Source: base, Options: []string{"rbind", "r" + p, "rw"}})
	}
	c := s.container(sp, rootfs(t)).run()
	for _, d := range []string{"private", "slave", "shared"} {
		mount("late", filepath.Join(base, "late-"+d), "tmpfs", 0)
		out, _ := s.execute(c, "grep", "-c", "/"+d+"/late-"+d+" ", "/proc/self/mountinfo")
		if want := map[string]string{"private": "0\n", "slave": "1\n", "shared": "1\n"}[d]; out != want {
			t.Errorf("host's mount seen by the %s volume: %q, want %q", d, out, want)
		}
	}
	for _, d := range []string{"private", "slave", "shared"} {
		p := execProcess("sh", "-c", "mkdir /"+d+"/in-"+d+" && mount -t tmpfs x /"+d+"/in-"+d)
		p.Capabilities = sp.Process.Capabilities
		id, err := s.exec(c, p, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if e := s.exited(c.id, id); e.Code != 0 {
			t.Errorf("mount in the %s volume: %+v", d, e)
		}
		mounts, _ := os.ReadFile("/proc/self/mountinfo")
		if seen := strings.Contains(string(mounts), base+"/in-"+d+" "); seen != (d == "shared") {
			t.Errorf("container's mount in the %s volume seen by the host: %v", d, seen)
		}
	}
	c.kill(unix.SIGKILL)
	c.wait()
}

func TestRecursiveReadOnly(t *testing.T) {
	s := launchShim(t)
	base := t.TempDir()
	if err := os.Mkdir(base+"/sub", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("x", base+"/sub", "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(base+"/sub", unix.MNT_DETACH) })
	sp := spec("sh", "-c", "touch /ro/a; touch /rro/a; touch /ro/sub/a && echo sub written; touch /rro/sub/a; true")
	sp.Mounts = append(sp.Mounts,
		specs.Mount{Destination: "/ro", Type: "bind", Source: base, Options: []string{"rbind", "rprivate", "ro"}},
		specs.Mount{Destination: "/rro", Type: "bind", Source: base, Options: []string{"rbind", "rprivate", "rro"}})
	c := s.container(sp, rootfs(t)).run()
	c.wait()
	if log := c.log(); strings.Count(log, "Read-only file system") != 3 || !strings.Contains(log, "sub written") {
		t.Errorf("%q", log)
	}
}

func TestSlowReaderLosesItsAttachment(t *testing.T) {
	s := launchShim(t)
	c := s.container(spec("sh", "-c", "sleep 0.2; dd if=/dev/zero bs=64k count=64 2>/dev/null; echo; echo finished"), rootfs(t)).run()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close() //nolint:errcheck // test
	s.must(v1.MethodAttach, v1.Attach{Container: c.id, Stdio: []string{"stdout"}}, []*os.File{w}, nil)
	_ = w.Close()
	start := time.Now()
	if e := c.wait(); e.Code != 0 || time.Since(start) > 5*time.Second {
		t.Errorf("%+v after %v", e, time.Since(start))
	}
	if !strings.HasSuffix(c.text(), "finished\n") {
		t.Error("the log is not complete")
	}
}

func TestHelloFirstAndDrain(t *testing.T) {
	s := launchShim(t)
	id := unique("pod")
	s.pod(v1.RunPod{ID: id, Namespaces: []string{"net"}})
	c := s.container(spec("sleep", "100"), rootfs(t))
	c.start.Pod, c.start.Join = id, []string{"net"}
	c.run()
	if _, err := s.call(v1.MethodRemovePod, v1.PodRef{ID: id}, nil, nil); errs.Of(err) != errs.FailedPrecondition {
		t.Errorf("remove of a pod in use: %v", err)
	}
	if _, err := s.call(v1.MethodDelete, v1.ContainerRef{ID: c.id}, nil, nil); errs.Of(err) != errs.FailedPrecondition {
		t.Errorf("delete of a running container: %v", err)
	}
	var r v1.HelloReply
	s.must(v1.MethodHello, v1.Hello{Version: v1.Version}, nil, &r)
	if len(r.Pods) != 1 || len(r.Containers) != 1 || r.Containers[0].Pid != c.reply.Pid {
		t.Errorf("hello: %+v", r)
	}
	if _, err := s.call(v1.MethodHello, v1.Hello{Version: 99}, nil, nil); errs.Of(err) != errs.FailedPrecondition {
		t.Errorf("hello of another version: %v", err)
	}
	var h v1.HandlesReply
	fds := s.must(v1.MethodHandles, v1.HandlesRequest{Container: c.id}, nil, &h)
	if strings.Join(h.Names, " ") != "pidfd stdout stderr" || len(fds) != 3 {
		t.Errorf("handles %v", h.Names)
	}
	for _, f := range fds {
		_ = f.Close()
	}
	s.must(v1.MethodDrain, struct{}{}, nil, nil)
	if _, err := s.call(v1.MethodRunPod, v1.RunPod{ID: unique("pod"), Namespaces: []string{"net"}}, nil, nil); errs.Of(err) != errs.FailedPrecondition {
		t.Errorf("new pod while draining: %v", err)
	}
	c.kill(unix.SIGKILL)
	c.wait()
	c.delete()
	s.must(v1.MethodRemovePod, v1.PodRef{ID: id}, nil, nil)
	select {
	case <-s.client.Done():
	case <-time.After(5 * time.Second):
		t.Error("the drained shim goes on")
	}
}
