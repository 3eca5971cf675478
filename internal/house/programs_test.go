package house

import (
	"flag"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the deps.txt of every program")

// programs are the mains and what must not be linked into them: the shim and the plugin are resident, or started,
// once for every pod.
func programs() map[string][]string {
	small := []string{grpc, http, k8s, "github.com/", "encoding/xml", "crypto/tls"}
	return map[string][]string{
		"cri/cmd/berth-cri":              {},
		"shim/cmd/berth-shim":            slices.DeleteFunc(slices.Clone(small), func(s string) bool { return s == "github.com/" }),
		"cni/cmd/berth-cni":              small,
		"cni/cmd/berth-netd":             {grpc, k8s + "/client-go/kubernetes", k8s + "/client-go/informers"},
		"cni/cmd/berth-bgp":              {k8s},
		"deviceplugin/cmd/berth-gpu":     {k8s + "/client-go", k8s + "/api", k8s + "/apimachinery"},
		"deviceplugin/cmd/berth-gpu-dra": {"github.com/NVIDIA/"},
		"csi/cmd/berth-csi":              {},
	}
}

// withCgo says whether a program is built with cgo: berth-gpu alone, because NVML is a C library. It builds without
// as well, and then asks /proc.
func withCgo(main string) bool { return main == "deviceplugin/cmd/berth-gpu" }

func TestPrograms(t *testing.T) {
	for _, p := range list(t, "./...") {
		if _, known := programs()[p.own()]; strings.Contains(p.own(), "/cmd/") && !known {
			t.Errorf("%s is not in programs_test.go", p.own())
		}
	}
	for main, banned := range programs() {
		modules := map[string]bool{}
		for _, p := range listWith(t, withCgo(main), "-deps", "./"+main) {
			for _, b := range banned {
				if p.own() == "" && (below(p.ImportPath, b) || strings.HasSuffix(b, "/") && strings.HasPrefix(p.ImportPath, b)) {
					t.Errorf("%s links %s", main, p.ImportPath)
				}
			}
			if len(p.CgoFiles) > 0 && !p.Standard && !withCgo(main) {
				t.Errorf("%s links %s, which uses cgo", main, p.ImportPath)
			}
			if p.Module != nil && p.own() == "" {
				modules[p.Module.Path] = true
			}
		}
		reviewed(t, main, modules)
	}
}

// reviewed compares the modules a program is linked from with the list beside its main, so that a new one is seen
// in a diff. Versions are go.mod's business.
func reviewed(t *testing.T, main string, modules map[string]bool) {
	t.Helper()
	var b strings.Builder
	for _, m := range slices.Sorted(keys(modules)) {
		b.WriteString(m + "\n")
	}
	file := filepath.Join(root, main, "deps.txt")
	if *update {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil || string(want) != b.String() {
		t.Errorf("%s is linked from other modules than %s/deps.txt says (%v): if that is meant, run go test ./internal/house -update\n%s", main, main, err, b.String())
	}
}

func keys(m map[string]bool) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// starters are the only files that may start another program, and what.
func starters() map[string]string {
	return map[string]string{
		"cri/internal/shims/place.go":                      "berth-shim",
		"cri/internal/systemd/hold.go":                     "a program of 75 bytes that it makes itself, to hold a pod's systemd scope",
		"cni/internal/bgp/speaker/process.go":              "berth-bgp, as another user",
		"cni/internal/delegate/delegate.go":                "an IPAM plugin that is not built in, as the specification says",
		"cri/internal/apparmor/apparmor.go":                "apparmor_parser, which compiles and loads a profile, where AppArmor is active",
		"cni/internal/iptables/iptables.go":                "iptables-save and iptables-restore, where the configuration asks for iptables",
		"deviceplugin/internal/mps/daemon.go":              "nvidia-cuda-mps-control, by berth-gpu itself, and to ask it",
		"shim/internal/seccomp/gen/main.go":                "go list, on a developer's machine",
		"deviceplugin/internal/discovery/child/process.go": "berth-gpu itself, to talk to the driver",
		"cri/internal/unpacker/unpackertest/program.go":    "go build, in tests",
		"csi/internal/mkfs/mkfs.go":                        "mkfs.ext4, mkfs.xfs, e2fsck, resize2fs",
		"csi/internal/volgroup/run.go":                     "lvm, which alone may write the metadata of a volume group",
	}
}

// shells are programs that would interpret what they are given.
func shells() []string {
	return []string{"sh", "bash", "/bin/sh", "/bin/bash", "ash", "dash", "busybox", "/bin/busybox", "/usr/bin/env"}
}

// TestNoShell looks at the code that is installed on a node.
func TestNoShell(t *testing.T) {
	fset := token.NewFileSet()
	for _, file := range sources(t, "cri", "shim", "cni", "csi", "deviceplugin", "proto", "internal") {
		if strings.HasSuffix(file, "_test.go") || below(file, "shim/test") || below(file, "cri/test") || below(file, "cni/test") || below(file, "csi/test") {
			continue
		}
		f, err := parser.ParseFile(fset, filepath.Join(root, file), nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, imp := range f.Imports {
			if imp.Path.Value == strconv.Quote(osExec) && starters()[file] == "" {
				t.Errorf("%s imports os/exec: only %v may", file, starters())
			}
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
				if s, err := strconv.Unquote(lit.Value); err == nil && slices.Contains(shells(), s) {
					t.Errorf("%s names a shell: %s", fset.Position(lit.Pos()), s)
				}
			}
			return true
		})
	}
}
