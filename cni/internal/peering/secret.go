package peering

import (
	"fmt"
	"os"
	"strings"

	"github.com/berth-project/berth/cni/internal/bgp"
)

// secrets reads a password file, an empty path is no password; an argument so that compile is pure.
type secrets func(path string) (bgp.Secret, error)

// readSecret takes the first line of a file that only its owner may read. A file without one is an error: it is about to
// be written, and a session without a key is not what was asked for.
func readSecret(path string) (bgp.Secret, error) {
	if path == "" {
		return bgp.Secret{}, nil
	}
	fi, err := os.Stat(path)
	if err != nil {
		return bgp.Secret{}, err
	}
	if fi.Mode().Perm()&0o077 != 0 {
		return bgp.Secret{}, fmt.Errorf("%s: others than its owner may read it", path)
	}
	b, err := os.ReadFile(path) //nolint:gosec // the operator's own choice
	if err != nil {
		return bgp.Secret{}, err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	if line == "" || len(line) > bgp.MaxPassword {
		return bgp.Secret{}, fmt.Errorf("%s: its first line has %d bytes, want 1–%d", path, len(line), bgp.MaxPassword)
	}
	return bgp.NewSecret(line), nil
}
