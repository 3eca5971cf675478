package test

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// statusOf is a running process's status, by its first words.
func statusOf(t *testing.T, c *ctr) map[string]string {
	t.Helper()
	time.Sleep(50 * time.Millisecond) // past its own start
	b, err := os.ReadFile("/proc/" + itoa(c.reply.Pid) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(line, ":")
		out[key] = strings.Join(strings.Fields(value), " ")
	}
	return out
}

// TestIdentity: the process is who the spec says, in all four of its ids, in its groups and in its five sets of
// capabilities, and in nobody else's.
func TestIdentity(t *testing.T) {
	s := launchShim(t)
	layer := rootfs(t)
	const bind, none = "0000000000000400", "0000000000000000" // CAP_NET_BIND_SERVICE is bit 10
	for name, c := range map[string]struct {
		user    specs.User
		ambient bool
		want    map[string]string
	}{
		"root": {
			specs.User{AdditionalGids: []uint32{10, 20}},
			false,
			map[string]string{"Uid": "0 0 0 0", "Gid": "0 0 0 0", "Groups": "10 20", "CapBnd": bind, "CapPrm": bind, "CapEff": bind, "CapInh": none, "CapAmb": none},
		},
		"a user": {
			specs.User{UID: 1000, GID: 2000},
			false,
			map[string]string{"Uid": "1000 1000 1000 1000", "Gid": "2000 2000 2000 2000", "Groups": "", "CapBnd": bind, "CapPrm": none, "CapEff": none, "CapInh": none, "CapAmb": none},
		},
		"a user with ambient capabilities": {
			specs.User{UID: 1000, GID: 2000, AdditionalGids: []uint32{3000}},
			true,
			map[string]string{"Uid": "1000 1000 1000 1000", "Groups": "3000", "CapBnd": bind, "CapPrm": bind, "CapEff": bind, "CapInh": bind, "CapAmb": bind},
		},
	} {
		t.Run(name, func(t *testing.T) {
			sp := spec("sleep", "100")
			caps := []string{"CAP_NET_BIND_SERVICE"}
			sp.Process.User, sp.Process.Capabilities = c.user, &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
			if c.ambient {
				sp.Process.Capabilities.Inheritable, sp.Process.Capabilities.Ambient = caps, caps
			}
			got := statusOf(t, s.container(sp, layer).run())
			for key, want := range c.want {
				if got[key] != want {
					t.Errorf("%s: %q, want %q", key, got[key], want)
				}
			}
		})
	}
}

// TestClosedPaths: masked paths show nothing, read-only ones take nothing, and there is one root.
func TestClosedPaths(t *testing.T) {
	s := launchShim(t)
	c := s.container(spec("sleep", "100"), rootfs(t)).run()
	for script, want := range map[string]string{
		"cat /proc/keys /proc/timer_list | wc -c":                                 "0",
		"ls -A /sys/firmware | wc -l":                                             "0",
		"dd if=/proc/kcore bs=16 count=1 2>/dev/null | wc -c":                     "0",
		"(: >> /proc/sys/kernel/hostname) 2>&1 | grep -c 'Read-only file system'": "1", // opened, never written
		"awk '$5 == \"/\"' /proc/self/mountinfo | wc -l":                          "1",
	} {
		if out, _ := s.execute(c, "sh", "-c", script); strings.TrimSpace(out) != want {
			t.Errorf("%s: %q, want %s", script, out, want)
		}
	}
	out, _ := s.execute(c, "sh", "-c", `awk '{split($6, o, ","); print $5, o[1]}' /proc/self/mountinfo`)
	mounts := strings.Split(strings.TrimSpace(out), "\n")
	for _, want := range []string{"/proc/sys ro", "/proc/irq ro", "/proc/bus ro", "/proc/fs ro", "/sys ro"} {
		if !slices.Contains(mounts, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}
