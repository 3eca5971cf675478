// Package unpackertest builds the program whose children package unpacker's tests, and those of its users, run: a test
// binary is often linked dynamically (-race), and finds no loader in a child's empty root.
package unpackertest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// env names the program for processes that a test starts.
const env = "BERTH_TEST_UNPACKER"

// Program is the path of berth-cri, statically linked, as Build has left it.
func Program() string { return os.Getenv(env) }

// Build builds berth-cri for Program, here and in child processes; call it from TestMain. What it returns removes the
// program again. In a process that inherited one it does nothing.
func Build() (remove func() error, err error) {
	if Program() != "" {
		return func() error { return nil }, nil
	}
	dir, err := os.MkdirTemp("", "berth-unpacker-*")
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, "berth-cri")
	cmd := exec.Command("go", "build", "-trimpath", "-o", path, "github.com/berth-project/berth/cri/cmd/berth-cri")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=readonly")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the unpacker: %w: %s", err, out)
	}
	return func() error { return os.RemoveAll(dir) }, os.Setenv(env, path)
}
