package test

import (
	"os"
	"sync"
	"testing"
	"time"
)

// TestStoppedGroup: a container whose v1 cgroup lets nobody run, because it is frozen or its time is used up, holds up what is
// executed in it, and nothing else of the same shim.
func TestStoppedGroup(t *testing.T) {
	for name, group := range map[string]struct{ controller, file, stop, goOn string }{
		"frozen":    {"freezer", "freezer.state", "FROZEN", "THAWED"},
		"throttled": {"cpu", "cpu.cfs_quota_us", "1000", "-1"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := os.Stat("/sys/fs/cgroup/" + group.controller + "/tasks"); err != nil {
				t.Skipf("this machine has no v1 hierarchy of %s: %v", group.controller, err)
			}
			s := launchShim(t)
			layer := rootfs(t)
			c := s.container(spec("sh", "-c", "for i in 1 2 3 4 5 6 7 8; do while :; do :; done & done; wait"), layer).withCgroups().run()
			set := func(what string) {
				if err := os.WriteFile(c.cgroup(group.controller, group.file), []byte(what), 0); err != nil {
					t.Error(err)
				}
			}
			var wg sync.WaitGroup
			defer wg.Wait()
			defer set(group.goOn)
			set(group.stop)
			time.Sleep(300 * time.Millisecond) // its time is used up
			for range 3 {
				wg.Go(func() {
					if out, code := s.execute(c, "echo", "x"); out != "x\n" || code != 0 { // at last
						t.Errorf("exec: %q, %d", out, code)
					}
				})
			}
			time.Sleep(100 * time.Millisecond) // they are under way
			for range 5 {
				begin := time.Now()
				other := s.container(spec("true"), layer).run()
				other.wait()
				if took := time.Since(begin); took > 2*time.Second {
					t.Errorf("another container took %v", took)
				}
			}
		})
	}
}
