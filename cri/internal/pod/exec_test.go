package pod

import (
	"testing"
	"time"
)

// TestExecsLeaveNoGroup: what an exec has left running keeps its group no longer than until the next exec after its end, or
// the next daemon.
func TestExecsLeaveNoGroup(t *testing.T) {
	n := newNode(t)
	id := n.start(n.run("p"), "c", "/bin/sleep", "1000")
	c, err := n.Container(id)
	if err != nil {
		t.Fatal(err)
	}
	group, err := n.Group(c)
	if err != nil {
		t.Fatal(err)
	}
	if n.groups.Unified == "" {
		t.Skip("no unified tree, so execs have no groups")
	}
	exec := func(script string) {
		t.Helper()
		if _, _, code, err := n.ExecSync(t.Context(), id, []string{"/bin/sh", "-c", script}, 20*time.Second); err != nil || code != 0 {
			t.Fatalf("%q: %d, %v", script, code, err)
		}
	}
	ended := func(group string) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); len(n.groups.Pids(group)) > 0; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("what the exec has left does not end")
			}
		}
	}
	exec("true")
	if all := n.groups.Execs(group); len(all) != 0 {
		t.Errorf("an exec that left nothing leaves %v", all)
	}
	exec("/bin/sleep 1 >/dev/null 2>&1 &")
	all := n.groups.Execs(group)
	if len(all) != 1 {
		t.Fatalf("the group of what runs on: %v", all)
	}
	ended(all[0])
	exec("true")
	if all := n.groups.Execs(group); len(all) != 0 {
		t.Errorf("after the end of what was left, and one more exec: %v", all)
	}
	exec("/bin/sleep 1 >/dev/null 2>&1 &")
	ended(n.groups.Execs(group)[0])
	n.restart()
	if all := n.groups.Execs(group); len(all) != 0 {
		t.Errorf("after a restart: %v", all)
	}
	n.restart() // one that runs on through it is looked at by later execs
	exec("/bin/sleep 1 >/dev/null 2>&1 &")
	n.restart()
	ended(n.groups.Execs(group)[0])
	exec("true")
	if all := n.groups.Execs(group); len(all) != 0 {
		t.Errorf("after a restart and one more exec: %v", all)
	}
}
