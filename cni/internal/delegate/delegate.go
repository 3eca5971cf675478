// Package delegate executes an IPAM plugin that is not built in, as the specification's section 4 says: the same
// environment, the same configuration on stdin, the plugin found by its type in CNI_PATH. It knows the protocol and
// nothing of what is delegated.
package delegate

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/berth-project/berth/cni/internal/spec"
)

// Call is what the delegate gets.
type Call struct {
	// Type names the plugin; Path is CNI_PATH.
	Type, Path string
	// Env is the whole environment but for CNI_COMMAND.
	Env   []string
	Stdin []byte
}

// Run executes a verb and returns what the plugin printed. An error carries the delegate's code.
func Run(c Call, verb string) ([]byte, error) {
	path, err := find(c)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(path)
	cmd.Env = append(c.Env[:len(c.Env):len(c.Env)], "CNI_COMMAND="+verb)
	cmd.Stdin = bytes.NewReader(c.Stdin)
	var stdout bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, os.Stderr
	err = cmd.Run()
	if err == nil {
		return stdout.Bytes(), nil
	}
	var exit *exec.ExitError
	fault := &spec.Error{}
	if errors.As(err, &exit) && json.Unmarshal(stdout.Bytes(), fault) == nil && fault.Code != 0 {
		return nil, fmt.Errorf("IPAM plugin %s, %s: %w", c.Type, verb, fault)
	}
	return nil, spec.Errorf(spec.CodeInternal, "IPAM plugin %s, %s: %w: %.200s", c.Type, verb, err, stdout.String())
}

// find looks for the plugin. Its type is a file name, never a path (CVE-2021-20206).
func find(c Call) (string, error) {
	if c.Type == "" || c.Type != filepath.Base(c.Type) || c.Type == "." || c.Type == ".." {
		return "", spec.Errorf(spec.CodeConfig, "ipam.type %q is not the name of a plugin", c.Type)
	}
	for _, dir := range filepath.SplitList(c.Path) {
		p := filepath.Join(dir, c.Type)
		if fi, err := os.Stat(p); err == nil && fi.Mode().IsRegular() && filepath.IsAbs(dir) {
			return p, nil
		}
	}
	return "", spec.Errorf(spec.CodeConfig, "ipam.type: no plugin %q in CNI_PATH %q (built in are host-local and static)", c.Type, c.Path)
}
