package test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// times is how often something is tried: few times, or with BERTH_TORTURE=1 all.
func times(few, all int) int {
	if os.Getenv("BERTH_TORTURE") != "" {
		return all
	}
	return few
}

// atEntry says what a process has been given, before it does anything else: the shell looks at itself through children, which
// opens nothing in it.
const atEntry = `ls -l /proc/$$/fd; stat -L -c 'null %t:%T' /proc/$$/fd/0; echo "exe $(readlink /proc/$$/exe)"; echo "cwd $(readlink /proc/$$/cwd)"
stat -L -c 'same %d:%i' /proc/$$/exe /bin/sh; stat -L -c 'same %d:%i' /proc/$$/cwd /root; (pwd -P; : >>/proc/$$/exe) 2>&1`

var fdLine = regexp.MustCompile(`(?m)^l\S+ .* (\d+) -> (.*)$`)

// entered looks at what atEntry said.
func entered(t *testing.T, what, said string) {
	t.Helper()
	var fds []string
	for _, m := range fdLine.FindAllStringSubmatch(said, -1) {
		to, _, _ := strings.Cut(m[2], "[")
		fds = append(fds, m[1]+" "+to)
	}
	null := map[string]string{"init": "/dev/null", "exec": "/"}[what] // an exec's is a mount of its own: see the executor
	if want := []string{"0 " + null, "1 pipe:", "2 pipe:"}; !slices.Equal(fds, want) {
		t.Errorf("%s enters with the descriptors %q, want %q", what, fds, want)
	}
	same := regexp.MustCompile(`same (\S+)`).FindAllString(said, -1)
	if len(same) != 4 || same[0] != same[1] || same[2] != same[3] {
		t.Errorf("%s: program and directory are %q, want the container's own", what, same)
	}
	for _, want := range []string{"null 1:3\n", "exe /bin/sh\n", "cwd /root\n", "\n/root\n", "Text file busy"} {
		if !strings.Contains(said, want) {
			t.Errorf("%s: no %q in %q", what, want, said)
		}
	}
	if t.Failed() {
		t.Fatalf("%s says %s", what, said)
	}
}

// TestEntry looks at each of many processes as they enter their container: three descriptors, a working directory inside, the
// program of the image. What is left open now and then, because of a race, is an escape as good as one that always is
// (CVE-2016-9962, CVE-2024-21626: descriptors and directories of the host; CVE-2019-5736: the runtime's program).
func TestEntry(t *testing.T) {
	const chunk = 100 // processes of one shim
	for range times(1, 5000/chunk) {
		t.Run("", func(t *testing.T) {
			s, layer := launchShim(t), rootfs(t)
			sleeper := s.container(spec("sleep", "1000"), layer).run()
			for range chunk {
				sp := spec("sh", "-c", atEntry)
				sp.Process.Cwd = "/root"
				c := s.container(sp, layer).run()
				c.wait()
				entered(t, "init", c.text())
				c.delete()
				c.cleanup()
				p := execProcess("sh", "-c", atEntry)
				p.Cwd = "/root"
				entered(t, "exec", s.output(sleeper, p))
			}
		})
	}
}

// output is what an exec says.
func (s *shim) output(c *ctr, p *specs.Process) string {
	s.t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		s.t.Fatal(err)
	}
	defer r.Close() //nolint:errcheck // test
	id, err := s.exec(c, p, []string{"stdout", "stderr"}, []*os.File{w, w})
	_ = w.Close()
	if err != nil {
		s.t.Fatal(err)
	}
	var out strings.Builder
	_ = r.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := r.WriteTo(&out); err != nil {
		s.t.Fatal(err)
	}
	s.exited(c.id, id)
	return out.String()
}

// thief waits in a container until one of its processes runs another program than its shell's, holds that open, and writes to it
// when it is told that nobody runs it any more.
const thief = `until [ -e /vol/caught ]; do for e in /proc/[0-9]*/exe; do
if [ -e "$e" ] && ! [ "$e" -ef /bin/sh ] && command exec 9<"$e"; then echo >/vol/caught; break; fi; done; done 2>/dev/null
until [ -e /vol/alone ]; do usleep 1000; done
if (: >>/proc/self/fd/9) 2>/vol/said; then echo written >/vol/said; fi; echo >/vol/over; sleep 1000`

// TestOwnProgramIsSheltered lets a container execute /proc/self/exe, which is the shim's program when the kernel looks at it, and
// another process of it take hold of that. After the shim's death nothing runs the program; still it cannot be written
// (CVE-2019-5736). Nothing is: the thief only opens it.
func TestOwnProgramIsSheltered(t *testing.T) {
	if raced := binary; raceEnabled { // its loader is not in the container
		t.Cleanup(func() { binary = raced })
		binary = filepath.Join(t.TempDir(), "berth-shim")
		if err := build(binary, false); err != nil {
			t.Fatal(err)
		}
	}
	s := launchShim(t)
	vol := t.TempDir()
	exe := "/proc/" + strconv.Itoa(s.cmd.Process.Pid) + "/exe"
	var on unix.Statfs_t
	if err := unix.Statfs(exe, &on); err != nil || on.Flags&unix.ST_RDONLY == 0 {
		t.Errorf("the shim's own program is on a mount with flags %#x, %v; want a read-only one", on.Flags, err)
	}
	if name, err := os.ReadFile(filepath.Dir(exe) + "/comm"); err != nil || string(name) != "berth-shim\n" {
		t.Errorf("the shim's name is %q, %v", name, err)
	}
	sp := spec("sh", "-c", thief)
	sp.Mounts = append(sp.Mounts, specs.Mount{Destination: "/vol", Type: "bind", Source: vol, Options: []string{"rbind", "rw"}})
	layer := rootfs(t)
	if err := os.WriteFile(filepath.Join(layer, "script"), []byte("#!/proc/self/exe\n"), 0o755); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	c := s.container(sp, layer).run()
	is := func(name string) bool { _, err := os.Stat(filepath.Join(vol, name)); return err == nil }
	for end := time.Now().Add(20 * time.Second); !is("caught"); {
		if time.Now().After(end) {
			t.Fatal("the thief did not see the shim's program: the attack has to be another one")
		}
		for _, command := range []string{"/script", "/proc/self/exe"} {
			if id, err := s.exec(c, execProcess(command), nil, nil); err == nil {
				s.exited(c.id, id)
			}
		}
	}
	if err := s.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.cmd.Process.Wait(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(vol, "alone"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); !is("over") && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
	if said, err := os.ReadFile(filepath.Join(vol, "said")); err != nil || !strings.Contains(string(said), "Read-only file system") {
		t.Errorf("when nobody runs it the shim's program opens for writing: %q, %v", said, err)
	}
}
