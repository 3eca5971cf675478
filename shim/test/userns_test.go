package test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	v1 "github.com/berth-project/berth/proto/shim/v1"
)

func mappings() []v1.IDMapping { return []v1.IDMapping{{ContainerID: 0, HostID: 200000, Size: 65536}} }

func specMappings() []specs.LinuxIDMapping {
	return []specs.LinuxIDMapping{{ContainerID: 0, HostID: 200000, Size: 65536}}
}

// usernsSpec is spec for a container in a pod's user namespace.
func usernsSpec(args ...string) *specs.Spec {
	sp := spec(args...)
	sp.Linux.Namespaces = append(sp.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	sp.Linux.UIDMappings, sp.Linux.GIDMappings = specMappings(), specMappings()
	return sp
}

func (s *shim) pod(req v1.RunPod, fds ...*os.File) v1.RunPodReply {
	s.t.Helper()
	var reply v1.RunPodReply
	for _, f := range s.must(v1.MethodRunPod, req, fds, &reply) {
		_ = f.Close()
	}
	s.t.Cleanup(func() { _, _ = s.call(v1.MethodRemovePod, v1.PodRef{ID: req.ID}, nil, nil) })
	return reply
}

func TestUserNamespace(t *testing.T) {
	s := launchShim(t)
	id := unique("pod")
	s.pod(v1.RunPod{
		ID: id, Namespaces: []string{"net", "ipc", "uts"}, Hostname: "mapped", UIDMappings: mappings(), GIDMappings: mappings(),
		Sysctls: map[string]string{"net.ipv4.ip_unprivileged_port_start": "82"},
	})
	vol := t.TempDir()
	if err := os.WriteFile(filepath.Join(vol, "owned"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	sp := usernsSpec("sh", "-c", "id -u; cat /proc/self/uid_map; stat -c %u /bin/sh /idmapped/owned /plain/owned; touch /idmapped/new /new; "+
		"cat /proc/sys/net/ipv4/ip_unprivileged_port_start; echo x > /dev/null && echo null ok; cat /proc/1/cmdline; ls /sys/class/net; stat -c %u /dev/shm; mount -o remount,rw /ro || echo locked")
	sp.Mounts = append(sp.Mounts,
		specs.Mount{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"mode=1777", "size=1m"}},
		specs.Mount{Destination: "/idmapped", Type: "bind", Source: vol, Options: []string{"rbind", "rprivate", "rw"}, UIDMappings: specMappings(), GIDMappings: specMappings()},
		specs.Mount{Destination: "/plain", Type: "bind", Source: vol, Options: []string{"rbind", "rprivate", "rw"}},
		specs.Mount{Destination: "/ro", Type: "bind", Source: vol, Options: []string{"rbind", "rprivate", "ro"}})
	c := s.container(sp, rootfs(t))
	c.start.Pod, c.start.Join = id, []string{"net", "ipc", "uts", "user"}
	c.run()
	e := c.wait()
	got := strings.Join(strings.Fields(c.text()), " ")
	want := "0 0 200000 65536 0 0 65534 82 null ok sh-c"
	if e.Code != 0 || !strings.HasPrefix(strings.ReplaceAll(got, "\x00", ""), want) || !strings.Contains(got, "\x00lo 0 ") || !strings.Contains(got, "locked") {
		t.Errorf("exit %+v, container said %q, log %q", e, got, c.log())
	}
	for f, uid := range map[string]uint32{filepath.Join(vol, "new"): 0, filepath.Join(c.dir, "upper/new"): 200000} {
		var st unix.Stat_t
		if err := unix.Stat(f, &st); err != nil || st.Uid != uid {
			t.Errorf("%s is owned by %d on the host, want %d, %v", f, st.Uid, uid, err)
		}
	}
}

func TestUserNamespaceExecAndHostNetwork(t *testing.T) {
	s := launchShim(t)
	id := unique("pod")
	s.pod(v1.RunPod{ID: id, Namespaces: []string{"ipc", "uts"}, UIDMappings: mappings(), GIDMappings: mappings()})
	sp := usernsSpec("sleep", "100")
	sp.Linux.Namespaces = []specs.LinuxNamespace{
		{Type: specs.PIDNamespace},
		{Type: specs.IPCNamespace},
		{Type: specs.UTSNamespace},
		{Type: specs.MountNamespace},
		{Type: specs.CgroupNamespace},
		{Type: specs.UserNamespace},
	}
	c := s.container(sp, rootfs(t))
	c.start.Pod, c.start.Join = id, []string{"ipc", "uts", "user"}
	c.run()
	out, code := s.execute(c, "sh", "-c", "id -u; cat /proc/self/uid_map; ls /sys/class/net | head -1")
	if f := strings.Fields(out); code != 0 || len(f) < 5 || f[0] != "0" || f[2] != "200000" {
		t.Errorf("exec: %d %q", code, out)
	}
}

func TestNewUserNamespaceOfItsOwn(t *testing.T) {
	s := launchShim(t)
	c := s.container(usernsSpec("sh", "-c", "id -u; cat /proc/self/uid_map"), rootfs(t)).run()
	if e := c.wait(); e.Code != 0 || strings.Join(strings.Fields(c.text()), " ") != "0 0 200000 65536" {
		t.Errorf("%+v %q", e, c.log())
	}
}

func TestPodPidNamespace(t *testing.T) {
	for name, maps := range map[string][]v1.IDMapping{"host user": nil, "user namespace": mappings()} {
		t.Run(name, func(t *testing.T) {
			s := launchShim(t)
			id := unique("pod")
			reply := s.pod(v1.RunPod{ID: id, Namespaces: []string{"net", "ipc", "uts", "pid"}, UIDMappings: maps, GIDMappings: maps})
			if reply.InitPid == 0 {
				t.Fatal("no init")
			}
			sp := spec("sh", "-c", "cat /proc/1/cmdline; echo; echo $$; (sleep 0.2 &) ; sleep 0.5; ps")
			join := []string{"net", "ipc", "uts", "pid"}
			if maps != nil {
				sp = usernsSpec(sp.Process.Args...)
				join = append(join, "user")
			}
			c := s.container(sp, rootfs(t))
			c.start.Pod, c.start.Join = id, join
			c.run()
			e := c.wait()
			if got := c.text(); e.Code != 0 || !strings.HasPrefix(got, "berth-init\x00\n") || strings.Contains(got, "[sleep]") {
				t.Errorf("%+v: %q", e, c.log())
			}
			second := s.container(sp, rootfs(t))
			second.start.Pod, second.start.Join, second.start.PidOf = id, join, ""
			second.run().wait()
			c.delete()
			second.delete()
			s.must(v1.MethodRemovePod, v1.PodRef{ID: id}, nil, nil)
			if b, err := os.ReadFile("/proc/" + itoa(reply.InitPid) + "/comm"); err == nil && strings.Contains(string(b), "berth") {
				// collected asynchronously
				t.Logf("init still there: %s", b)
			}
		})
	}
}

func TestPidOf(t *testing.T) {
	s := launchShim(t)
	first := s.container(spec("sleep", "77"), rootfs(t)).run()
	c := s.container(spec("sh", "-c", "cat /proc/1/cmdline; sleep 100"), rootfs(t))
	c.start.PidOf = first.id
	c.run()
	out, code := s.execute(c, "cat", "/proc/1/cmdline")
	if code != 0 || out != "sleep\x0077\x00" {
		t.Errorf("exec sees %q", out)
	}
}
