package conform

import (
	"errors"
	"fmt"
	"os/exec"
	"sort"
	"strings"
)

// mutating are the system calls by which a plugin changes anything outside itself.
func mutating() []string {
	return []string{
		"sendto", "sendmsg", "openat", "write", "pwrite64", "rename,renameat,renameat2", "link,linkat", "unlink,unlinkat",
		"mkdir,mkdirat", "setns", "clone,clone3,vfork", "ftruncate",
	}
}

// most bounds how often a plugin is killed at one kind of system call.
const most = 25

// kill executes a verb again and again and kills it before the Nth system call of each kind that it does, then lets DEL
// clean up, as a runtime does after a failed ADD and until a DEL succeeds.
func (t *T) kill(verb string) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Fatalf("strace is not installed")
	}
	t.warm()
	leaks := map[string]int{}
	runs := 0
	for _, kind := range mutating() {
		for nth := 1; nth <= most; nth++ {
			before := t.census()
			var a *attachment
			var conf string
			if verb == "ADD" {
				var prev []byte
				a, prev = t.base("1.0.0")
				conf = t.conf(len(t.Chain)-1, "1.0.0", prev, nil)
				a.confs, a.results = append(a.confs, conf), append(a.results, prev)
			} else {
				a = t.attach("1.0.0", nil)
				conf = t.finalConf(a)
			}
			c := call{
				verb: verb, file: t.file(t.last()), id: a.id, netns: a.ns.Path, stdin: conf,
				prefix: []string{
					strace, "-f", "-qq", "-o", "/dev/null", "-e", "trace=" + kind,
					"-e", fmt.Sprintf("inject=%s:signal=SIGKILL:when=%d", kind, nth),
				},
			}
			_, err := t.exec(c)
			runs++
			for try := range 3 {
				n := len(t.fails)
				t.detach(a, nil)
				if len(t.fails) == n || try == 2 {
					break
				}
				t.fails = t.fails[:n] // a runtime tries again
			}
			a.ns.vanish()
			for _, l := range t.left(before) {
				leaks[fmt.Sprintf("%s (killed before %s no. %d)", l, kind, nth)]++
			}
			if !errors.Is(err, errKilled) {
				break
			}
		}
	}
	if len(leaks) > 0 {
		var all []string
		for l := range leaks {
			all = append(all, l)
		}
		sort.Strings(all)
		t.Failf("%d things are left after %d runs, such as %s", len(all), runs, strings.Join(all[:min(len(all), 2)], "; "))
	}
}
