package privilege

import (
	"strings"
	"testing"
)

const probe = `== /proc/self/status
Name:	probe
Uid:	0	0	0	0
CapEff:	00000000a80405fb
NoNewPrivs:	1
Seccomp:	2
== /proc/self/limits
Limit                     Soft Limit           Hard Limit           Units     
Max open files            19999                20000                files     
Max processes             1000                 1000                 processes 
== /proc/self/mountinfo
100 90 0:40 / / rw,relatime - overlay overlay rw,lowerdir=/a,upperdir=/b
101 100 0:41 / /proc rw,nosuid,nodev,noexec,relatime - proc proc rw
102 100 0:42 / /dev/shm rw,nosuid,nodev,noexec,relatime shared:1 - tmpfs shm rw,size=65536k
103 101 0:6 /null /proc/keys ro,nosuid,noexec,relatime - devtmpfs devtmpfs rw,size=1k
== /proc/self/cgroup
0::/
== fds
0 /dev/null
1 pipe
5 anon_inode
== dev
/dev/null Dcrw-rw-rw-
`

func facts(t *testing.T, text string) Facts {
	t.Helper()
	f, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestParse(t *testing.T) {
	f := facts(t, probe)
	for name, want := range map[string]string{
		"CapEff": "00000000a80405fb", "Uid": "0 0 0 0", "limit Max open files": "19999 20000 files", "node /dev/null": "Dcrw-rw-rw-",
		"mount /": "overlay relatime,rw super rw", "mount /dev/shm": "tmpfs nodev,noexec,nosuid,relatime,rw super rw,size=65536k", "descriptors": "/dev/null pipe",
	} {
		if f[name] != want {
			t.Errorf("%s is %q, want %q", name, f[name], want)
		}
	}
	if _, err := Parse("sh: /bin/probe: not found"); err == nil {
		t.Error("a probe that told nothing passed")
	}
}

// TestWhatCounts changes one thing at a time on the peer's side and says whether the benchmark must refuse.
func TestWhatCounts(t *testing.T) {
	for name, c := range map[string]struct {
		from, to string
		bad      bool
	}{
		"more capabilities":             {"a80405fb", "a80425fb", true},
		"no seccomp":                    {"Seccomp:	2", "Seccomp:	0", true},
		"no_new_privs":                  {"NoNewPrivs:	1", "NoNewPrivs:	0", true},
		"another hard limit":            {"20000                files", "4096                 files", true},
		"another soft limit":            {"19999 ", "20000 ", false},
		"processes":                     {"Max processes             1000 ", "Max processes             9000 ", true},
		"a device more":                 {"/dev/null Dcrw-rw-rw-", "/dev/null Dcrw-rw-rw-\n/dev/kmsg Dcrw-------", true},
		"the peer's shm is laxer":       {"/dev/shm rw,nosuid,nodev,noexec,relatime", "/dev/shm rw,relatime", false},
		"the peer's shm is stricter":    {"/dev/shm rw,nosuid", "/dev/shm ro,nosuid", true},
		"the peer masks with its own":   {"0:6 /null /proc/keys ro,nosuid,noexec,relatime - devtmpfs devtmpfs rw", "0:83 /null /proc/keys rw,nosuid - tmpfs tmpfs rw", false},
		"the peer masks what we do not": {"== /proc/self/cgroup", "104 101 0:6 /null /proc/kcore ro - devtmpfs devtmpfs rw\n== /proc/self/cgroup", true},
		"a descriptor leaks":            {"5 anon_inode", "5 /etc/shadow", true},
		"the probe's own descriptor":    {"5 anon_inode", "7 anon_inode", false},
	} {
		peer := strings.Replace(probe, c.from, c.to, 1)
		if peer == probe {
			t.Fatalf("%s: the case changes nothing", name)
		}
		lines := Compare(facts(t, probe), facts(t, peer))
		if bad := Bad(lines); (len(bad) > 0) != c.bad {
			t.Errorf("%s: bad lines %+v", name, bad)
		}
		var out strings.Builder
		Print(&out, lines)
		if name != "the probe's own descriptor" && !strings.Contains(out.String(), "≠") {
			t.Errorf("%s: the table shows no difference:\n%s", name, out.String())
		}
	}
}
