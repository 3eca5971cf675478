// Package upstream runs the containernetworking project's own tests that execute plugins as binaries, unchanged, against
// any set of plugins, and drives cnitool.
//
// Those tests build what they execute with `go build`; here a program of that name comes first in PATH that copies the
// plugin under test, and the project's own echo server and client, to where the test wants them.
package upstream

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	conform "github.com/berth-project/berth/e2e/cni-conform"
)

// Suite is one of the project's test programs.
type Suite struct {
	Name, Program string
	// Focus is the part of it that executes binaries.
	Focus string
	// Backend is what the node's file says, because the suite looks into iptables itself.
	Backend string
}

// Suites are all of them.
func Suites() []Suite {
	return []Suite{
		{Name: "loopback", Program: "cni-loopback.test"},
		{Name: "integration (cnitool: ptp, bridge, bandwidth)", Program: "cni-integration.test"},
		{Name: "portmap integration, iptables", Program: "cni-portmap.test", Focus: "portmap integration tests", Backend: "iptables"},
		{Name: "firewall integration", Program: "cni-firewall.test", Focus: "ingress-policy"},
		{Name: "firewall integration, iptables", Program: "cni-firewall.test", Focus: "ingress-policy", Backend: "iptables"},
	}
}

// FakeGo is what the program does under the name "go": it copies what it was asked to build.
func FakeGo(args []string, plugins, tools string) error {
	i := slices.Index(args, "-o")
	if i < 0 || i+1 >= len(args) || args[0] != "build" {
		return fmt.Errorf("go %q: only \"go build -o\" is known", args)
	}
	pkg := args[len(args)-1]
	from := filepath.Join(plugins, filepath.Base(pkg))
	if strings.Contains(pkg, "/testutils/echo/") {
		from = filepath.Join(tools, "cni-echo-"+filepath.Base(pkg))
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close() //nolint:errcheck // read only
	out, err := os.OpenFile(args[i+1], os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// Lab is the directory in which the suites run.
type Lab struct {
	// Plugins is the set under test; Tools has the test programs; Source is the project's source, for its test data.
	Plugins, Tools, Source string
	dir                    string
}

// Prepare makes the directory: ./bin with the plugins, ./integration with its data, ./path with cnitool and "go".
func (l *Lab) Prepare(self string) error {
	var err error
	if l.dir, err = os.MkdirTemp("", "berth-cni-upstream"); err != nil {
		return err
	}
	for _, d := range []string{"path", "integration"} {
		if err := os.Mkdir(filepath.Join(l.dir, d), 0o755); err != nil {
			return err
		}
	}
	for name, to := range map[string]string{
		"bin": l.Plugins, "path/go": self, "path/cnitool": filepath.Join(l.Tools, "cnitool"),
		"integration/testdata": filepath.Join(l.Source, "integration", "testdata"),
	} {
		if err := os.Symlink(to, filepath.Join(l.dir, name)); err != nil {
			return err
		}
	}
	return conform.LayerEtc()
}

// Close removes the directory.
func (l *Lab) Close() error { return os.RemoveAll(l.dir) }

// Run runs a suite and returns its summary, or why it failed with what it printed.
func (l *Lab) Run(s Suite) (string, error) {
	err := errors.Join(os.RemoveAll("/run/berth"), os.RemoveAll("/var/lib/cni"), conform.NodeBackend(s.Backend))
	if err != nil {
		return "", err
	}
	args := []string{"-ginkgo.no-color"}
	if s.Focus != "" {
		args = append(args, "-ginkgo.focus", s.Focus)
	}
	cmd := exec.Command(filepath.Join(l.Tools, s.Program), args...)
	cmd.Dir = filepath.Join(l.dir, "integration")
	cmd.Env = append(os.Environ(), "PATH="+filepath.Join(l.dir, "path")+":"+l.Plugins+":"+os.Getenv("PATH"))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	summary := ""
	for line := range strings.Lines(out.String()) {
		if strings.Contains(line, "Passed |") || strings.HasPrefix(line, "Ran ") {
			summary += strings.TrimSpace(line) + " "
		}
	}
	if err != nil {
		return summary, fmt.Errorf("%w\n%s", err, out.String())
	}
	return strings.TrimSpace(summary), nil
}
