package netd

import (
	"context"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const ten = 10 * time.Second

// try runs berth-netd as an operator does.
func (n *node) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), ten)
	defer cancel()
	out, err := exec.CommandContext(ctx, filepath.Join(n.lab.bin, "berth-netd"), append([]string{"--config", n.file("netd.yaml")}, args...)...).CombinedOutput()
	return string(out), err
}

func contains(t *testing.T, text string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(text, w) {
			t.Errorf("%q is not in\n%s", w, text)
		}
	}
}
