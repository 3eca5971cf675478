// Package floor measures what the kernel alone takes for a pod's life, with a small C program that makes only the
// system calls a pod needs: the distance that is left to win. It is compiled when the benchmark starts.
package floor

import (
	"bufio"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/berth-project/berth/e2e/bench/pods"
	"github.com/berth-project/berth/e2e/harness"
	"github.com/berth-project/berth/e2e/images"
)

//go:embed src/floor.c
var source string

//go:embed src/wait.c
var waitSource string

// Steps are what the floor measures, in the order of its output.
func Steps() []string {
	return []string{pods.RunPodSandbox, pods.CreateStart, pods.ExecSync, pods.StopContainer, pods.StopPodSandbox}
}

// Compile builds a static C program.
func compile(ctx context.Context, out, text string) error {
	cmd := exec.CommandContext(ctx, "gcc", "-O2", "-static", "-s", "-x", "c", "-o", out, "-")
	cmd.Stdin = strings.NewReader(text)
	if msg, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("gcc: %w: %s", err, msg)
	}
	return nil
}

// Wait builds the workload of every pod at path.
func Wait(ctx context.Context, path string) error { return compile(ctx, path, waitSource) }

// Floor is the running program.
type Floor struct {
	dir, group string
	cmd        *exec.Cmd
	in         io.WriteCloser
	out        *bufio.Reader
}

// Start compiles the program and runs it below dir, with pods whose cgroups are below group. wait is the workload.
func Start(ctx context.Context, dir, group, wait string) (*Floor, error) {
	f := &Floor{dir: dir, group: group}
	if err := errors.Join(harness.MakeCgroup(group), f.root(wait), compile(ctx, f.path("floor"), source)); err != nil {
		return nil, err
	}
	f.cmd = f.command(ctx, f.path("work"))
	var err error
	if f.in, err = f.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := f.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	f.out = bufio.NewReader(out)
	return f, f.cmd.Start()
}

func (f *Floor) path(name string) string { return filepath.Join(f.dir, name) }

// command runs in a network namespace of its own, so that its bridge is nobody else's.
func (f *Floor) command(ctx context.Context, work string, more ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "unshare", append([]string{"--net", f.path("floor"), f.group, f.path("lower"), work}, more...)...)
	cmd.Stderr = os.Stderr
	return cmd
}

// root makes the root file system of the floor's containers.
func (f *Floor) root(wait string) error {
	var all []error
	for _, d := range []string{"work", "lower/bin", "lower/proc", "lower/sys", "lower/dev"} {
		all = append(all, os.MkdirAll(f.path(d), 0o755))
	}
	for to, from := range map[string]string{"true": images.Busybox, "wait": wait} {
		b, err := os.ReadFile(from)
		all = append(all, err, os.WriteFile(f.path("lower/bin/"+to), b, 0o755))
	}
	return errors.Join(all...)
}

// Pod runs one pod and says how long its steps took.
func (f *Floor) Pod() (pods.Times, error) {
	if _, err := io.WriteString(f.in, "\n"); err != nil {
		return nil, err
	}
	line, err := f.out.ReadString('\n')
	if err != nil {
		return nil, fmt.Errorf("the floor: %w", err)
	}
	return parse(line)
}

func parse(line string) (pods.Times, error) {
	t := pods.Times{}
	all := strings.Fields(line)
	if len(all) != len(Steps()) {
		return nil, fmt.Errorf("the floor said %q", line)
	}
	for i, step := range Steps() {
		us, err := strconv.ParseFloat(all[i], 64)
		if err != nil {
			return nil, err
		}
		t[step] = time.Duration(us * float64(time.Microsecond))
	}
	return t, nil
}

// Burst starts n pods with two workers and says how long it took until all ran.
func (f *Floor) Burst(ctx context.Context, n int) (time.Duration, error) {
	work, err := os.MkdirTemp(f.dir, "burst")
	if err != nil {
		return 0, err
	}
	out, err := f.command(ctx, work, strconv.Itoa(n)).Output()
	if err != nil {
		return 0, fmt.Errorf("the floor: %w", err)
	}
	us, err := strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
	return time.Duration(us * float64(time.Microsecond)), err
}

// Stop ends it.
func (f *Floor) Stop() error { return errors.Join(f.in.Close(), f.cmd.Wait()) }
