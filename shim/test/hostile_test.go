package test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-project/berth/proto/errs"
)

// TestHostileRootfs starts containers whose image redirects what the runtime uses to paths of the host.
func TestHostileRootfs(t *testing.T) {
	s := launchShim(t)
	host := t.TempDir()
	bait := filepath.Join(host, "bait")
	if err := os.Mkdir(bait, 0o755); err != nil {
		t.Fatal(err)
	}
	src := filepath.Join(host, "src")
	if err := os.WriteFile(src, []byte("from the kubelet"), 0o644); err != nil {
		t.Fatal(err)
	}
	link := func(layer, name, target string) {
		_ = os.RemoveAll(filepath.Join(layer, name))
		if err := os.Symlink(target, filepath.Join(layer, name)); err != nil {
			t.Fatal(err)
		}
	}
	cases := map[string]struct {
		set  func(layer string, sp *specs.Spec)
		fail string // text of the expected error; empty: starts and exits 0
	}{
		"proc is a link":      {func(l string, _ *specs.Spec) { link(l, "proc", bait) }, "mount proc on /proc"},
		"sys is a link":       {func(l string, _ *specs.Spec) { link(l, "sys", "/tmp") }, "mount sysfs on /sys"},
		"dev is a link":       {func(l string, _ *specs.Spec) { link(l, "dev", "/tmp") }, ""},
		"target link to host": {func(l string, sp *specs.Spec) { link(l, "vol", bait); bindTo(sp, src, "/vol") }, "bind"},
		"target parent link": {func(l string, sp *specs.Spec) {
			link(l, "vol", "../../../../../../.."+bait)
			bindTo(sp, src, "/vol/file")
		}, "no such file"},
		"target link inside": {func(l string, sp *specs.Spec) {
			link(l, "vol", "/tmp")
			bindTo(sp, src, "/vol/file")
			sp.Process.Args = []string{"grep", "-q", "kubelet", "/tmp/file"}
		}, ""},
		"etc is the root": {func(l string, sp *specs.Spec) {
			link(l, "etc", "/")
			bindTo(sp, src, "/etc/hosts")
			sp.Process.Args = []string{"grep", "-q", "kubelet", "/hosts"}
		}, ""},
		"masked path by link": {func(l string, sp *specs.Spec) {
			link(l, "mask", bait)
			sp.Linux.MaskedPaths = append(sp.Linux.MaskedPaths, "/mask")
		}, ""},
		"read-only path by link": {func(l string, sp *specs.Spec) {
			link(l, "mask", "/proc/self/root"+bait)
			sp.Linux.ReadonlyPaths = append(sp.Linux.ReadonlyPaths, "/mask")
		}, "too many levels of symbolic links"},
		"cwd by descriptor":     {func(_ string, sp *specs.Spec) { sp.Process.Cwd = "/proc/self/fd/7" }, "working directory"},
		"cwd link to host":      {func(l string, sp *specs.Spec) { link(l, "cwd", bait); sp.Process.Cwd = "/cwd" }, "working directory"},
		"mount on root":         {func(_ string, sp *specs.Spec) { bindTo(sp, host, "/") }, "not a mount target"},
		"mount on root by dots": {func(_ string, sp *specs.Spec) { bindTo(sp, host, "/tmp/../..") }, "not a mount target"},
		"mount inside proc":     {func(_ string, sp *specs.Spec) { bindTo(sp, host, "/proc/sys/kernel") }, "inside /proc"},
		"sysctl of the host": {func(_ string, sp *specs.Spec) {
			sp.Linux.Sysctl = map[string]string{"kernel.core_pattern": corePattern(t)}
		}, "not namespaced"},
		"sysctl traversal": {func(_ string, sp *specs.Spec) {
			sp.Linux.Sysctl = map[string]string{"net/../kernel/core_pattern": corePattern(t)}
		}, "not a name"},
		"sysctl newline": {func(_ string, sp *specs.Spec) { sp.Linux.Sysctl = map[string]string{"net.ipv4.ip_forward": "1\n"} }, "bad characters"},
		"apparmor":       {func(_ string, sp *specs.Spec) { sp.Process.ApparmorProfile = "berth-default" }, "AppArmor"},
		"hooks": {func(_ string, sp *specs.Spec) {
			sp.Hooks = &specs.Hooks{CreateContainer: []specs.Hook{{Path: "/bin/true"}}}
		}, "hooks"},
		"console link": {func(l string, sp *specs.Spec) {
			link(l, "dev", "/tmp")
			sp.Process.Terminal = true
		}, ""},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			sp := spec("true")
			layer := rootfs(t)
			tc.set(layer, sp)
			c := s.container(sp, layer)
			err := c.try()
			switch {
			case tc.fail == "" && err != nil:
				t.Errorf("start: %v", err)
			case tc.fail == "":
				if e := c.wait(); e.Code != 0 {
					t.Errorf("exit %+v: %s", e, c.log())
				}
				c.delete()
			case err == nil || !strings.Contains(err.Error(), tc.fail):
				t.Errorf("error %v, want %q in it", err, tc.fail)
			}
			if found, _ := os.ReadDir(bait); len(found) > 0 {
				t.Errorf("something was made on the host: %v", found)
			}
		})
	}
	if b, _ := os.ReadFile(src); string(b) != "from the kubelet" {
		t.Errorf("the source is now %q", b)
	}
}

// corePattern is what the machine has: a guard that is broken changes nothing by it. A program that dies would start any other.
func corePattern(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/sys/kernel/core_pattern")
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func bindTo(sp *specs.Spec, src, dest string) {
	sp.Mounts = append(sp.Mounts, specs.Mount{Destination: dest, Type: "bind", Source: src, Options: []string{"rbind", "rprivate", "ro"}})
}

func TestErrors(t *testing.T) {
	s := launchShim(t)
	layer := rootfs(t)
	if err := os.WriteFile(filepath.Join(layer, "bin/plain"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"nosuch": `exec: "nosuch": executable file not found in $PATH`, "/bin/nosuch": `exec: "/bin/nosuch": no such file or directory`,
		"plain": `exec: "plain": permission denied`, "/bin": `exec: "/bin": permission denied`,
	} {
		err := s.container(spec(name), layer).try()
		if err == nil || !strings.Contains(err.Error(), want) || errs.Of(err) != errs.InvalidArgument {
			t.Errorf("start of %s: %v (%v), want %s", name, err, errs.Of(err), want)
		}
	}
	c := s.container(spec("true"), layer)
	c.start.Seccomp = "sha256:unknown"
	if err := c.try(); errs.Of(err) != errs.NotFound {
		t.Errorf("unknown profile: %v", err)
	}
	c = s.container(spec("true"), layer)
	c.start.Rootfs.Lower = []string{"/nonexistent/layer"}
	if err := c.try(); err == nil || !strings.Contains(err.Error(), "/nonexistent/layer") {
		t.Errorf("missing layer: %v", err)
	}
	c = s.container(spec("true"), layer)
	c.start.LogName = "../escape.log"
	if err := c.try(); err == nil {
		t.Error("log name with .. accepted")
	}
}
