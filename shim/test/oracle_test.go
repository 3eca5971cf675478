package test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	v1 "github.com/berth-project/berth/proto/shim/v1"
)

// runcEnv names the oracle: the path of a runc binary.
const runcEnv = "BERTH_TEST_RUNC"

func runc(t testing.TB) string {
	t.Helper()
	path := os.Getenv(runcEnv)
	if path == "" {
		t.Skipf("%s does not name a runc binary", runcEnv)
	}
	return path
}

// probe prints what a process sees of itself and of its container.
const probe = `
echo "[status]"; grep -E '^(Umask|Uid|Gid|Groups|SigBlk|SigIgn|SigCgt|CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp|Seccomp_filters|Cpus_allowed|TracerPid|THP_enabled):' /proc/self/status
echo "[limits]"; cat /proc/self/limits
echo "[cgroup]"; cat /proc/self/cgroup
echo "[mountinfo]"; cat /proc/self/mountinfo
echo "[fds]"; ls -l /proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2 2>&1; ls /proc/$$/fd
echo "[oom]"; cat /proc/self/oom_score_adj
echo "[dev]"; ls -l /dev /dev/pts
echo "[cwd]"; pwd; umask
echo "[host]"; hostname; cat /proc/sys/kernel/domainname
echo "[env]"; env
echo "[session]"; cat /proc/self/stat | cut -d' ' -f5,6,7
echo "[masked]"; for f in /proc/kcore /proc/keys /proc/timer_list /sys/firmware /proc/acpi; do stat -c '%n %F' $f 2>&1; [ $(head -c 1 $f 2>/dev/null | wc -c) = 0 ] && echo empty; done
echo "[ro]"; for f in /proc/sys/kernel/hostname /proc/sysrq-trigger; do [ -w $f ] && echo writable $f; done # asked, never tried: some share it with the host
echo "[lo]"; ip link show lo
`

// seen is the probe's output by section, normalised.
func seen(text, id string) map[string][]string {
	sections := map[string][]string{}
	name := ""
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		if strings.HasPrefix(line, "[") && strings.HasSuffix(line, "]") {
			name = line
			continue
		}
		line = strings.ReplaceAll(line, id, "ID")
		switch name {
		case "[mountinfo]":
			line = normalMount(line)
		case "[session]": // process ids of a pod's pid namespace depend on who made how many processes there
			if f := strings.Fields(line); len(f) == 3 && f[0] == f[1] {
				line = "a session of its own, terminal " + f[2]
			}
		case "[fds]", "[dev]":
			line = regexp.MustCompile(`(pipe:)\[\d+\]`).ReplaceAllString(line, "$1")
			line = regexp.MustCompile(`\s[A-Z][a-z]{2}\s+\d+\s+\d+:\d+`).ReplaceAllString(line, " DATE")
			line = regexp.MustCompile(`^total .*`).ReplaceAllString(line, "")
		}
		sections[name] = append(sections[name], line)
	}
	slices.Sort(sections["[mountinfo]"])
	slices.Sort(sections["[env]"])
	return sections
}

// normalMount keeps of a mountinfo line: root, target, options, propagation, type, source and superblock options.
func normalMount(line string) string {
	f := strings.Fields(line)
	if len(f) < 10 {
		return line
	}
	dash := slices.Index(f, "-")
	for i := 6; i < dash; i++ {
		f[i], _, _ = strings.Cut(f[i], ":")
	}
	super := f[dash+3]
	if f[dash+1] == "overlay" {
		super = regexp.MustCompile(`(lowerdir\+?|upperdir|workdir)=[^,]*`).ReplaceAllString(super, "$1")
		f[dash+2] = "overlay"
	}
	return strings.Join([]string{f[4], f[3], f[5], strings.Join(f[6:dash], " "), f[dash+1], f[dash+2], super}, " ")
}

func (c *ctr) useOCI(path string) *ctr {
	// in a user namespace runc walks to the rootfs as the mapped root
	if err := os.Chmod(filepath.Dir(c.dir), 0o755); err != nil { //nolint:gosec // a test's directory
		c.s.t.Fatal(err)
	}
	c.start.OCI = &v1.OCIRuntime{Binary: path, Root: c.dir + "/runc", Bundle: c.dir + "/bundle"}
	return c
}

// oracleCases are the specs that both executors run.
func oracleCases(t *testing.T) map[string]func(sp *specs.Spec) {
	vol := t.TempDir()
	if err := os.WriteFile(filepath.Join(vol, "f"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	all := append(defaultCaps(), "CAP_SYS_ADMIN")
	return map[string]func(sp *specs.Spec){
		"default": func(*specs.Spec) {},
		"user": func(sp *specs.Spec) {
			umask := uint32(0o027)
			sp.Process.User = specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{1001, 7, 50000}, Umask: &umask}
			sp.Process.Cwd = "/made/by/runtime"
		},
		"ambient": func(sp *specs.Spec) {
			sp.Process.User = specs.User{UID: 1000, GID: 1000}
			set := []string{"CAP_NET_BIND_SERVICE"}
			sp.Process.Capabilities = &specs.LinuxCapabilities{Bounding: set, Effective: set, Permitted: set, Inheritable: set, Ambient: set}
		},
		"no caps": func(sp *specs.Spec) { sp.Process.Capabilities = &specs.LinuxCapabilities{} },
		"volumes": func(sp *specs.Spec) {
			sp.Mounts = append(sp.Mounts,
				specs.Mount{Destination: "/vol", Type: "bind", Source: vol, Options: []string{"rbind", "rprivate", "ro"}},
				specs.Mount{Destination: "/deep/er/file", Type: "bind", Source: vol + "/f", Options: []string{"bind", "rprivate", "nosuid", "noexec", "nodev"}},
				specs.Mount{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}})
		},
		"readonly root": func(sp *specs.Spec) { sp.Root.Readonly = true },
		"limits": func(sp *specs.Spec) {
			score := 500
			sp.Process.OOMScoreAdj = &score
			sp.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 512, Hard: 1000}, {Type: "RLIMIT_CORE", Soft: 0, Hard: 0}, {Type: "RLIMIT_NPROC", Soft: 900, Hard: 901}}
		},
		"privileged": func(sp *specs.Spec) {
			sp.Process.NoNewPrivileges = false
			sp.Process.Capabilities = &specs.LinuxCapabilities{Bounding: all, Effective: all, Permitted: all}
			sp.Linux.MaskedPaths, sp.Linux.ReadonlyPaths = nil, nil
			sp.Mounts[4].Options = []string{"nosuid", "noexec", "nodev"}
		},
		"sysctl and hostname": func(sp *specs.Spec) {
			sp.Hostname, sp.Domainname = "oracle", "example"
			sp.Linux.Sysctl = map[string]string{"net.ipv4.ip_forward": "1", "kernel.msgmax": "9000"}
		},
		"terminal": func(sp *specs.Spec) { sp.Process.Terminal = true },
		"devices": func(sp *specs.Spec) {
			mode, uid := os.FileMode(0o640), uint32(1000)
			sp.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229, FileMode: &mode, UID: &uid, GID: &uid}}
		},
		"user namespace": func(sp *specs.Spec) {
			sp.Linux.Namespaces = append(sp.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
			sp.Linux.UIDMappings, sp.Linux.GIDMappings = specMappings(), specMappings()
		},
	}
}

// oracle compares what a process sees under the shim's own executor with what it sees under runc.
type oracle struct {
	runc  string
	known []difference
	used  []bool
}

func newOracle(t *testing.T) *oracle {
	t.Helper()
	o := &oracle{runc: runc(t)}
	b, err := os.ReadFile("testdata/oracle.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &o.known); err != nil {
		t.Fatal(err)
	}
	o.used = make([]bool, len(o.known))
	return o
}

// compare runs what prepare makes by both. What the process sees must be equal, or the difference must stand in
// testdata/oracle.json, with a reason.
func (o *oracle) compare(t *testing.T, name string, prepare func() *ctr) {
	t.Helper()
	var views [2]map[string][]string
	for i := range views {
		c := prepare()
		if i == 1 {
			c.useOCI(o.runc)
		}
		c.run()
		if e := c.wait(); e.Code != 0 {
			t.Errorf("executor %d: %+v %s", i, e, c.log())
		}
		views[i] = seen(c.text(), c.id)
		c.delete()
	}
	for _, d := range differences(views[0], views[1]) {
		at := slices.IndexFunc(o.known, func(k difference) bool {
			ok, err := regexp.MatchString("^(?:"+k.Line+")$", d)
			return err == nil && ok && (k.Case == "" || k.Case == name)
		})
		if at < 0 {
			t.Errorf("%s", d)
		} else {
			o.used[at] = true
		}
	}
}

// retarget lets the shim's helpers fail this test, not the one that launched it.
func (s *shim) retarget(t testing.TB) *shim {
	old := s.t
	s.t = t
	t.Cleanup(func() { s.t = old })
	return s
}

// TestOracle runs the specs above, then every spec that the conformance suite makes (testdata/specs.json, collected by
// `make oracle-specs`).
func TestOracle(t *testing.T) {
	o := newOracle(t)
	s := launchShim(t)
	layer := rootfs(t)
	for name, set := range oracleCases(t) {
		t.Run(name, func(t *testing.T) {
			s.retarget(t)
			o.compare(t, name, func() *ctr {
				sp := spec("sh", "-c", probe)
				set(sp)
				return s.confined(sp, layer)
			})
		})
	}
	for i, shape := range corpus(t) {
		name := fmt.Sprintf("corpus %d", i)
		if how := shape.Spec.Linux.RootfsPropagation; how != "" {
			name = "rootfs " + how
		}
		t.Run(name, func(t *testing.T) {
			s.retarget(t)
			o.compare(t, name, func() *ctr { // in a pod of its own: what one writes the other must not see
				join := shape.enter(t, s)
				c := s.confined(shape.Spec, layer)
				join(c)
				return c
			})
		})
	}
	for i, k := range o.known {
		if !o.used[i] && !k.Environment {
			t.Errorf("the reviewed difference %q does not occur any more", k.Line)
		}
	}
}

// confined is a container with cgroups of its own.
func (s *shim) confined(sp *specs.Spec, layer string) *ctr {
	c := s.container(sp, layer).withCgroups()
	sp.Linux.CgroupsPath = "/berth-shim-test-" + c.id
	c.setSpec(sp)
	return c
}

// difference is a reviewed one: lines that match, in one case or in all, and why they may differ. One that comes from
// the environment of the test does not occur everywhere.
type difference struct {
	Case, Line, Why string
	Environment     bool
}

// differences lists the lines that only one of the views has: "own [section] line" or "runc [section] line".
func differences(own, oracle map[string][]string) []string {
	var out []string
	only := func(who string, a, b map[string][]string) {
		for name, lines := range a {
			rest := slices.Clone(b[name])
			for _, l := range lines {
				if i := slices.Index(rest, l); i >= 0 {
					rest = slices.Delete(rest, i, i+1)
					continue
				}
				out = append(out, fmt.Sprintf("%s %s %s", who, name, l))
			}
		}
	}
	only("own", own, oracle)
	only("runc", oracle, own)
	slices.Sort(out)
	return out
}
