package trace

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	got, err := parse(strings.NewReader(`10 execve("/usr/bin/x", ["x"], 0x1 /* 3 vars */) = -1 ENOENT (No such file or directory)
10 execve("/bin/x", ["x"], 0x1 /* 3 vars */) = 0
11 fdatasync(3 <unfinished ...>
10 execveat(4, "", ["y"], 0x2, AT_EMPTY_PATH <unfinished ...>
11 <... fdatasync resumed>) = 0
10 <... execveat resumed>) = 0
12 fsync(7) = -1 EINVAL (Invalid argument)
12 fsync(7) = 0
13 +++ exited with 0 +++
`))
	if err != nil || got != (Counts{Execs: 2, Syncs: 2}) {
		t.Fatalf("%+v, %v", got, err)
	}
}

// TestDuring traces a shell that waits for a word and then runs three programs, one of them in a child.
func TestDuring(t *testing.T) {
	if _, err := exec.LookPath("strace"); err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", "read x; /bin/true; (/bin/true; sync -d /etc/passwd)")
	cmd.Stdin = r
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	got, err := During(context.Background(), t.TempDir(), []int{cmd.Process.Pid}, 0, func() error {
		if _, err := w.WriteString("go\n"); err != nil {
			return err
		}
		return cmd.Wait()
	})
	if err != nil || got.Execs != 3 || got.Syncs != 1 {
		t.Fatalf("%+v, %v", got, err)
	}
}
