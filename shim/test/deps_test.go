package test

import (
	"os/exec"
	"strings"
	"testing"
)

// TestDependencies keeps the shim small: nothing that parses a network protocol or knows Kubernetes, and no cgo.
func TestDependencies(t *testing.T) {
	cmd := exec.Command("go", "list", "-deps", "../cmd/berth-shim")
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	allowed := []string{
		"github.com/berth-project/berth/shim/", "github.com/berth-project/berth/internal/", "github.com/berth-project/berth/proto/errs",
		"github.com/berth-project/berth/proto/shim/v1", "golang.org/x/sys/unix", "github.com/opencontainers/runtime-spec/specs-go",
	}
	for _, dep := range strings.Fields(string(out)) {
		if dep == "net/http" || dep == "crypto/tls" || dep == "os/exec" || dep == "text/template" || dep == "runtime/cgo" {
			t.Errorf("the shim links %s", dep)
		}
		if !strings.Contains(strings.Split(dep, "/")[0], ".") {
			continue
		}
		ok := false
		for _, a := range allowed {
			ok = ok || strings.HasPrefix(dep, a)
		}
		if !ok {
			t.Errorf("the shim links %s", dep)
		}
	}
}
