// Package house holds the project to its own rules: who may import what, what each program is linked from, who may
// start other programs, how long a file or a function may be, and that everything has its comment. It is tests
// alone and imports the standard library alone.
//
// A rule that stands in the way is changed here, with its reason, in the commit that needs it.
package house

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const module = "github.com/berth-project/berth/"

// root is the repository's root, from this package's directory.
const root = "../.."

// pkg is what the rules need of `go list -json`.
type pkg struct {
	ImportPath string
	Standard   bool
	CgoFiles   []string
	Imports    []string
	Module     *struct{ Path string }
}

// own is the package's path below the module, or "" for a foreign one.
func (p pkg) own() string {
	if name, ok := strings.CutPrefix(p.ImportPath, module); ok {
		return name
	}
	return ""
}

// list runs `go list` in the root module, as the programs are built: for Linux, without cgo.
func list(t *testing.T, args ...string) []pkg {
	t.Helper()
	return listWith(t, false, args...)
}

func listWith(t *testing.T, cgo bool, args ...string) []pkg {
	t.Helper()
	enabled := "0"
	if cgo {
		enabled = "1"
	}
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Standard,CgoFiles,Imports,Module"}, args...)...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "GOOS=linux", "CGO_ENABLED="+enabled)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list %v: %v\n%s", args, err, stderr.String())
	}
	var all []pkg
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// sources are the Go files of a tree, relative to the root, but for generated ones.
func sources(t *testing.T, below ...string) []string {
	t.Helper()
	var all []string
	for _, dir := range below {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, d os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if d.IsDir() && (strings.HasPrefix(d.Name(), ".") && len(d.Name()) > 2 || d.Name() == "testdata") {
				return filepath.SkipDir
			}
			if d.IsDir() || !strings.HasSuffix(path, ".go") || generated(t, path) {
				return nil
			}
			rel, err := filepath.Rel(root, path)
			all = append(all, rel)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all
}

func generated(t *testing.T, path string) bool {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.HasPrefix(b, []byte("// Code generated ")) || bytes.HasPrefix(b, []byte("//go:build tools"))
}
