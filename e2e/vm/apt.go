package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// apt is Debian's, with directories of its own below dir: the machine's sources and packages stay as they are.
type apt struct {
	dir    string
	source string // a line of sources.list
	status string // the dpkg status that dependencies are resolved against
}

func (a *apt) run(ctx context.Context, program string, args ...string) (string, error) {
	own := []string{
		"-o", "Dir::Etc::sourcelist=" + a.dir + "/sources.list", "-o", "Dir::Etc::sourceparts=-", "-o", "Dir::State=" + a.dir + "/state",
		"-o", "Dir::Cache=" + a.dir + "/cache", "-o", "Dir::State::status=" + a.status, "-o", "APT::Sandbox::User=root",
		"-o", "APT::Install-Recommends=false",
	}
	return run(ctx, a.dir, program, append(own, args...)...)
}

// update makes the directories and fetches the lists.
func (a *apt) update(ctx context.Context) error {
	err := errors.Join(os.MkdirAll(a.dir+"/state/lists/partial", 0o755), os.MkdirAll(a.dir+"/cache/archives/partial", 0o755),
		os.WriteFile(a.dir+"/sources.list", []byte(a.source), 0o644))
	if err != nil {
		return err
	}
	_, err = a.run(ctx, "apt-get", "update", "-qq")
	return err
}

// debs are the packages that were downloaded into a directory.
func debs(dir string) ([]string, error) {
	all, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err == nil && len(all) == 0 {
		err = fmt.Errorf("%s has no package", dir)
	}
	return all, err
}

func run(ctx context.Context, dir, program string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// runTo writes a program's output to a file.
func runTo(ctx context.Context, to *os.File, program string, args ...string) error {
	cmd := exec.CommandContext(ctx, program, args...)
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = to, &said
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, said.String())
	}
	return nil
}
