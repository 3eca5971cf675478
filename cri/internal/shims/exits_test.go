package shims

import (
	"io"
	"log/slog"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	v1 "github.com/berth-project/berth/proto/shim/v1"
)

// TestOwnWord: the shim that adopted a container can say nothing of its end on a kernel before 6.15; this process, to which the
// container came, can, whether it collects it before or after it hears of the end.
func TestOwnWord(t *testing.T) {
	for _, c := range []struct {
		name, script string
		told, want   v1.Exit
	}{
		{"exited", "exit 7", v1.Exit{Code: 255, Unknown: true}, v1.Exit{Code: 7}},
		{"well", "exit 0", v1.Exit{Code: 255, Unknown: true, OOMKilled: true}, v1.Exit{}},
		{"killed", "kill -9 $$", v1.Exit{Code: 255, Unknown: true, OOMKilled: true}, v1.Exit{Code: 137, Signal: 9, OOMKilled: true}},
		{"told", "exit 7", v1.Exit{Code: 3}, v1.Exit{Code: 3}},
	} {
		for _, first := range []bool{true, false} {
			t.Run(c.name, func(t *testing.T) {
				var heard v1.Exited
				p := New(Config{}, slog.New(slog.NewTextHandler(io.Discard, nil)), func(x v1.Exited) { heard = x }, nil)
				p.containers["c"] = &containerEntry{handles: map[string]*os.File{v1.HandlePidfd: child(t, c.script)}}
				if first {
					p.collectKnown()
				}
				p.ended(&shim{}, v1.Exited{Container: "c", Exit: c.told})
				p.collectKnown()
				heard.Exit.At = time.Time{}
				if heard.Exit != c.want {
					t.Errorf("%+v instead of %+v", heard.Exit, c.want)
				}
				if x := p.ExitOf("c"); c.told.Unknown && x.Code != c.want.Code {
					t.Errorf("asked afterwards: %+v", x)
				}
			})
		}
	}
}

// child is the pidfd of a child that has ended and was not collected.
func child(t *testing.T, script string) *os.File {
	t.Helper()
	fd := -1
	cmd := exec.Command("/bin/sh", "-c", script)
	cmd.SysProcAttr = &syscall.SysProcAttr{PidFD: &fd}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	t.Cleanup(func() {
		_ = cmd.Wait() // collected by what is tested, unless that failed
		_ = f.Close()
	})
	for end := time.Now().Add(10 * time.Second); !readable(f); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the child does not end")
		}
	}
	return f
}
