package kubelet

import (
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth/e2e/harness"
)

// TestLogRotation: the kubelet rotates a log at 10 Ki every 3 s and keeps 3 files. What is kept has every line once,
// up to the last, and who follows the log sees all of it from the first.
func TestLogRotation(t *testing.T) {
	t.Parallel()
	const lines = 900
	p := apply(t, "log-rotation", fmt.Sprintf(`
restartPolicy: Never
containers:
- name: count
  image: BUSYBOX
  command: [sh, -c, "sleep 1; i=0; while [ $i -lt %d ]; do echo line $i of a container that writes more than its log may hold; i=$((i+1)); usleep 8000; done"]
`, lines))
	seen := p.await("it runs", func(p *harness.Pod) bool { return status(p, "count").State.Running != nil })
	body, err := node.kubelet.Stream(p.ctx, "GET", fmt.Sprintf("/containerLogs/default/%s/count?follow=true", seen.Metadata.Name))
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close() //nolint:errcheck // read only
	var followed []string
	for sc := bufio.NewScanner(body); sc.Scan(); {
		followed = append(followed, sc.Text())
	}
	p.await("it has ended", func(p *harness.Pod) bool { return p.Status.Phase == "Succeeded" })
	if first, last := consecutive(t, followed, true); first != 0 || last != lines-1 {
		t.Errorf("the follower saw lines %d to %d, want 0 to %d", first, last, lines-1)
	}
	if first, last := consecutive(t, logFiles(t, "log-rotation", "count"), true); last != lines-1 {
		t.Errorf("the files hold lines %d to %d, want up to %d", first, last, lines-1)
	}
	if files := rotated(t, "log-rotation", "count"); len(files) < 2 {
		t.Errorf("the log was not rotated: %v", files)
	}
}

// TestPreviousLog: a container that ends is restarted, and its earlier log stays readable.
func TestPreviousLog(t *testing.T) {
	t.Parallel()
	p := apply(t, "previous-log", `
containers:
- name: twice
  image: BUSYBOX
  command: [sh, -c, "n=$(cat /keep/n 2>/dev/null || echo 1); echo $((n+1)) >/keep/n; echo I am run $n; usleep 100000; echo to stderr >&2; [ $n = 1 ] && exit 3; sleep 600"]
  volumeMounts: [{name: keep, mountPath: /keep}]
volumes: [{name: keep, emptyDir: {}}]
terminationGracePeriodSeconds: 0
`)
	seen := p.await("it runs a second time", func(p *harness.Pod) bool {
		c := status(p, "twice")
		return c.RestartCount == 1 && c.State.Running != nil
	})
	last := status(seen, "twice").LastState.Terminated
	if last == nil || last.ExitCode != 3 || last.Reason != "Error" {
		t.Errorf("last state is %+v, want exit code 3 and reason Error", last)
	}
	if err := harness.Until(p.ctx, 50*time.Millisecond, nil, func() error {
		if got := p.logs(seen, "twice", ""); got != "I am run 2\nto stderr\n" {
			return fmt.Errorf("log is %q", got)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	if got := p.logs(seen, "twice", "previous=true"); got != "I am run 1\nto stderr\n" {
		t.Errorf("previous log is %q", got)
	}
	if got := p.logs(seen, "twice", "previous=true&tailLines=1&timestamps=true"); !strings.HasSuffix(got, "Z to stderr\n") {
		t.Errorf("its last line with time is %q", got)
	}
}

// rotated are a container's log files, oldest first.
func rotated(t *testing.T, pod, container string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(node.lab.PodLogs(), "default_"+pod+"-berth-*", container, "*.log*"))
	if err != nil {
		t.Fatal(err)
	}
	files = slices.DeleteFunc(files, func(f string) bool { return strings.HasSuffix(f, ".tmp") })
	slices.SortFunc(files, func(a, b string) int { // 0.log is the newest, 0.log.TIME sort by time
		if strings.HasSuffix(a, ".log") != strings.HasSuffix(b, ".log") {
			if strings.HasSuffix(a, ".log") {
				return 1
			}
			return -1
		}
		return strings.Compare(a, b)
	})
	return files
}

// logFiles are the lines of all log files that the kubelet keeps of a container, read while they may be rotated.
func logFiles(t *testing.T, pod, container string) (lines []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	err := harness.Until(ctx, 10*time.Millisecond, nil, func() error {
		lines = nil
		files := rotated(t, pod, container)
		for _, f := range files {
			more, err := logLines(f)
			if err != nil {
				return err
			}
			lines = append(lines, more...)
		}
		if now := rotated(t, pod, container); !slices.Equal(now, files) {
			return errors.New("rotated meanwhile")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

// logLines reads a file of the CRI's log format, compressed or not.
func logLines(file string) ([]string, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // read only
	var r io.Reader = f
	if strings.HasSuffix(file, ".gz") {
		if r, err = gzip.NewReader(f); err != nil {
			return nil, err
		}
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	var lines []string
	for line := range strings.Lines(string(b)) {
		if !strings.HasSuffix(line, "\n") {
			break // being written
		}
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
		if len(f) < 4 {
			return nil, fmt.Errorf("%s: %q is no CRI log line", file, line)
		}
		lines = append(lines, f[3])
	}
	return lines, nil
}

// consecutive checks that lines say "line N…" with N growing by one, and returns the first and the last.
func consecutive(t *testing.T, lines []string, some bool) (first, last int) {
	t.Helper()
	first, last = -1, -1
	for _, l := range lines {
		var n int
		if _, err := fmt.Sscanf(l, "line %d", &n); err != nil {
			t.Errorf("%q is no line of the counter's", l)
			continue
		}
		if first < 0 {
			first = n
		} else if n != last+1 {
			t.Errorf("line %d follows line %d", n, last)
		}
		last = n
	}
	if some && first < 0 {
		t.Error("there are no lines")
	}
	return first, last
}
