package test

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/proto/errs"
	v1 "github.com/berth-project/berth/proto/shim/v1"
)

// TestAdoptWithoutLog: a successor that cannot open a container's log takes the container, reads its output, so that it is
// not held up, and says in the log what is missing there, once it can.
func TestAdoptWithoutLog(t *testing.T) {
	subreaper(t)
	old := launchShim(t)
	c := old.container(spec("sh", "-c", "trap 'exit 5' TERM; echo before; sleep 1; seq 1 100000; echo after; touch /tmp/done; while :; do usleep 10000; done"), rootfs(t))
	logs := c.dir + "/logs"
	if err := os.Mkdir(logs, 0o755); err != nil {
		t.Fatal(err)
	}
	c.start.LogDir = logs
	c.run()
	time.Sleep(200 * time.Millisecond)
	old.die()
	if err := os.Rename(logs, c.dir+"/away"); err != nil {
		t.Fatal(err)
	}
	s := launchShim(t)
	s.adopt(c)
	for end := time.Now().Add(15 * time.Second); ; time.Sleep(20 * time.Millisecond) { // its numbers are more than a pipe holds
		if _, code := s.execute(c, "test", "-e", "/tmp/done"); code == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("it is held up")
		}
	}
	time.Sleep(300 * time.Millisecond) // past what is in the pipe
	if err := os.Rename(c.dir+"/away", logs); err != nil {
		t.Fatal(err)
	}
	c.kill(unix.SIGTERM)
	collect(t, c.reply.Pid)
	if e := c.wait(); e.Code != 5 {
		t.Errorf("its end: %+v", e)
	}
	text, err := os.ReadFile(logs + "/0.log")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	if len(lines) != 2 || !strings.HasSuffix(lines[0], " stdout F before") || !strings.Contains(lines[1], " bytes of output are missing here: log directory") {
		t.Errorf("the log is %.300q", lines)
	}
}

// TestRemovedBefore: what was removed before it was there is neither made nor adopted any more: its request had been sent
// before, and was overtaken.
func TestRemovedBefore(t *testing.T) {
	subreaper(t)
	old := launchShim(t)
	c := old.container(spec("sleep", "100"), rootfs(t)).run()
	var reply v1.RunPodReply
	pod := unique("pod")
	fds := old.must(v1.MethodRunPod, v1.RunPod{ID: pod, Namespaces: []string{"net"}}, nil, &reply)
	old.die()
	s := launchShim(t)
	s.must(v1.MethodRemovePod, v1.PodRef{ID: pod}, nil, nil)
	s.must(v1.MethodDelete, v1.ContainerRef{ID: c.id}, nil, nil)
	for what, call := range map[string]func() error{
		"RunPod": func() error {
			_, err := s.call(v1.MethodRunPod, v1.RunPod{ID: pod, Namespaces: []string{"net"}}, nil, nil)
			return err
		},
		"AdoptPod": func() error {
			_, err := s.call(v1.MethodAdoptPod, v1.AdoptPod{ID: pod, Namespaces: []string{"net"}}, fds, nil)
			return err
		},
		"AdoptContainer": func() error {
			req := v1.AdoptContainer{Container: c.start.Container, Pid: c.reply.Pid, Handles: []string{v1.HandlePidfd}}
			_, err := s.call(v1.MethodAdoptContainer, req, []*os.File{c.out[v1.HandlePidfd]}, nil)
			return err
		},
	} {
		if err := call(); !errors.Is(err, errs.FailedPrecondition) {
			t.Errorf("%s after its removal: %v", what, err)
		}
	}
	var hello v1.HelloReply
	s.must(v1.MethodHello, v1.Hello{Version: v1.Version}, nil, &hello)
	if len(hello.Pods)+len(hello.Containers) != 0 {
		t.Errorf("the shim has %+v, %+v", hello.Pods, hello.Containers)
	}
	other := unique("pod") // others are made as ever
	closeFiles(s.must(v1.MethodRunPod, v1.RunPod{ID: other, Namespaces: []string{"net"}}, nil, nil))
	s.must(v1.MethodRemovePod, v1.PodRef{ID: other}, nil, nil)
	closeFiles(fds)
	c.kill(unix.SIGKILL)
	collect(t, c.reply.Pid)
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}
