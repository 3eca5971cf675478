package house

import (
	"slices"
	"strings"
	"testing"
)

const (
	grpc     = "google.golang.org/grpc"
	sys      = "golang.org/x/sys"
	k8s      = "k8s.io"
	http     = "net/http"
	osPkg    = "os"
	osExec   = "os/exec"
	criAPI   = "k8s.io/cri-api"
	cdiSpecs = "tags.cncf.io/container-device-interface/specs-go"
	yaml     = "go.yaml.in/yaml/v3"
	gobgp    = "github.com/osrg/gobgp"
	specsGo  = "github.com/opencontainers/runtime-spec"
)

// rule says what the packages below a path may import of ours and of others. A path of ours allows what is below
// it; the standard library is always allowed, but for what a rule bans. The longest path that matches rules.
type rule struct {
	path          string
	own, foreign  []string
	ban           []string // also from the standard library, exact or with all below it
	foreignIsFree bool     // edges and adapters choose their libraries; see deps.txt
}

// rules, from the leaves up. Adapters of cri know neither the domain nor each other, but for what is said here.
func rules() []rule {
	leaves := []string{"internal", "proto/errs"}
	adapter := func(path string, more ...string) rule {
		return rule{
			path: path, own: append(slices.Clone(leaves), more...), foreignIsFree: true,
			ban: []string{grpc, criAPI, osExec},
		}
	}
	return slices.Concat(networkRules(leaves), volumeRules(leaves), deviceRules(leaves), []rule{
		{path: "internal", foreign: []string{sys}, ban: []string{http, osExec}},
		{path: "internal/house"},
		{path: "internal/stricttoml", own: []string{"internal/nearest"}, foreign: []string{"github.com/pelletier/go-toml"}, ban: []string{http, osExec}},
		{path: "proto/errs", ban: []string{osExec, http}},
		{path: "proto/shim/v1", own: leaves, foreign: []string{sys}, ban: []string{osExec, http}},
		{path: "proto/cniagent/v1", foreign: []string{sys}, ban: []string{osExec, http}},
		{path: "proto/rpc", own: leaves, foreign: []string{sys, grpc}, ban: []string{osExec}},

		{path: "shim", own: append(leaves, "proto/shim", "shim/internal"), foreign: []string{sys, specsGo}, ban: []string{http, osExec}},
		{path: "shim/internal/seccomp/gen"}, // a tool of the developer's: asks `go list`
		{path: "cni", own: append(leaves, "cni/internal"), foreign: []string{sys}, ban: []string{http, osExec}},
		{path: "cni/internal/resident", own: append(leaves, "cni/internal", "proto/cniagent/v1"), foreign: []string{sys}, ban: []string{http, osExec}},
		{path: "cni/internal/delegate", own: []string{"cni/internal/spec"}, ban: []string{http}}, // IPAM plugins that are not built in
		{path: "cni/internal/iptables", ban: []string{http}},                                     // iptables-save and -restore

		{path: "cri/cmd", own: append(leaves, "proto", "cri/internal"), foreignIsFree: true, ban: []string{osExec}},
		{path: "cri/test", own: append(leaves, "proto", "cri/internal"), foreignIsFree: true}, // what drives its parts without the daemon
		{path: "cri/internal/server", own: append(leaves, "proto/rpc", "cri/internal/pod", "cri/internal/image"), foreignIsFree: true, ban: []string{osPkg, osExec, http}},
		{path: "cri/internal/stream", own: append(leaves, "cri/internal/pod", "cri/internal/network"), foreignIsFree: true, ban: []string{grpc, osExec}},
		{path: "cri/internal/stats", own: append(leaves, "cri/internal/pod", "cri/internal/network", "cri/internal/cgroup"), foreignIsFree: true, ban: []string{grpc, osExec, http}},
		{
			path: "cri/internal/pod",
			own: append(leaves, "proto/shim", "cri/internal/spec", "cri/internal/shims", "cri/internal/audit", "cri/internal/cgroup", "cri/internal/systemd",
				"cri/internal/network", "cri/internal/image", "cri/internal/rootfs", "cri/internal/apparmor", "cri/internal/cdi", "cri/internal/ldcache"),
			foreignIsFree: true, ban: []string{grpc, osExec, http},
		},
		// pure: what it needs of the machine is in its Input; of cgroup it uses the check of a key's name
		{
			path: "cri/internal/spec", own: append(leaves, "cri/internal/cgroup"), foreignIsFree: true,
			ban: []string{osPkg, "net", "time", "math/rand", "io/ioutil", grpc},
		},
		{path: "cri/internal/config", own: []string{"internal/stricttoml"}, foreignIsFree: true, ban: []string{osExec, http}},
		{path: "cri/internal/audit", own: leaves, ban: []string{grpc, osExec, http}}, // the vocabulary of `berth-cri check`
		adapter("cri/internal/cgroup"),
		{path: "cri/internal/systemd", own: append(slices.Clone(leaves), "cri/internal/cgroup"), foreign: []string{sys, "github.com/godbus/dbus"}, ban: []string{grpc, criAPI, http}},
		{path: "cri/internal/apparmor", own: append(leaves, "proto/errs"), ban: []string{grpc, http}},
		adapter("cri/internal/cdi"),
		{path: "cri/internal/ldcache", ban: []string{osPkg, osExec, http, grpc}},
		adapter("cri/internal/machine"),
		adapter("cri/internal/network", "proto/cniagent/v1"),
		adapter("cri/internal/store", "cri/internal/audit"),
		adapter("cri/internal/rootfs"),
		adapter("cri/internal/registry"),
		adapter("cri/internal/layers", "cri/internal/audit"),
		adapter("cri/internal/unpacker", "cri/internal/layers"),
		{path: "cri/internal/unpacker/unpackertest", ban: []string{http, grpc}},
		adapter("cri/internal/image", "cri/internal/audit", "cri/internal/layers", "cri/internal/registry", "cri/internal/unpacker"), // the domain of images
		{path: "cri/internal/shims", own: append(leaves, "proto/shim", "cri/internal/cgroup", "cri/internal/systemd"), foreign: []string{sys}, ban: []string{http}},
	})
}

func TestImports(t *testing.T) {
	standard := map[string]bool{}
	for _, p := range list(t, "std") {
		standard[p.ImportPath] = true
	}
	all := rules()
	for _, p := range list(t, "./...") {
		name := p.own()
		r := ruling(all, name)
		if r == nil {
			t.Errorf("%s has no rule: add one to imports_test.go", name)
			continue
		}
		for _, imp := range p.Imports {
			if why := r.refuses(name, imp, standard[imp]); why != "" {
				t.Errorf("%s imports %s: %s (rule %q)", name, imp, why, r.path)
			}
		}
		if len(p.CgoFiles) > 0 || slices.Contains(p.Imports, "C") {
			t.Errorf("%s uses cgo", name)
		}
	}
}

// ruling is the rule with the longest path that name is below.
func ruling(all []rule, name string) *rule {
	var r *rule
	for i := range all {
		if below(name, all[i].path) && (r == nil || len(all[i].path) > len(r.path)) {
			r = &all[i]
		}
	}
	return r
}

func (r *rule) refuses(from, imp string, standard bool) string {
	for _, b := range r.ban {
		if imp == b || b != osPkg && below(imp, b) {
			return "it is banned there"
		}
	}
	if standard {
		return ""
	}
	allowed := r.foreign
	if mine, ok := strings.CutPrefix(imp, module); ok {
		if below(mine, from) || below(from, mine) {
			return ""
		}
		imp, allowed = mine, r.own
	} else if r.foreignIsFree {
		return ""
	}
	for _, a := range allowed {
		if below(imp, a) {
			return ""
		}
	}
	return "it is not among " + strings.Join(allowed, ", ")
}

func below(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }

// TestRulesBite is for the rules themselves: each of these imports would be a mistake.
func TestRulesBite(t *testing.T) {
	for _, c := range []struct {
		from, imp string
		standard  bool
	}{
		{"cri/internal/pod", grpc, false},
		{"cri/internal/pod", module + "cri/internal/server", false},
		{"cri/internal/pod", module + "cri/internal/stream", false},
		{"cri/internal/pod", module + "cri/internal/config", false},
		{"cri/internal/pod", module + "proto/rpc", false},
		{"cri/internal/network", module + "cri/internal/pod", false},
		{"cri/internal/layers", module + "cri/internal/server", false},
		{"cri/internal/store", module + "cri/internal/network", false},
		{"cri/internal/spec", osPkg, true},
		{"cri/internal/server", osPkg, true},
		{"shim/internal/oci", osExec, true},
		{"shim/internal/app", "github.com/sirupsen/logrus", false},
		{"cni/internal/podnet", http, true},
		{"cni/internal/podnet", osExec, true},
		{"cni/internal/bgp/speaker", gobgp + "/v4/api", false},
		{"cni/internal/bgp", module + "cni/internal/bgpd", false},
		{"cni/internal/bgpd", osExec, true},
		{"deviceplugin/internal/health", osPkg, true},
		{"deviceplugin/internal/node", grpc, false},
		{"deviceplugin/internal/alloc", module + "deviceplugin/internal/server", false},
		{"csi/internal/driver", osPkg, true},
		{"csi/internal/volume", module + "csi/internal/loop", false},
		{"csi/internal/loop", module + "csi/internal/btrfs", false},
		{"csi/internal/btrfs", osExec, true},
		{"internal/inroot", module + "proto/errs", false},
		{"proto/errs", "golang.org/x/sys/unix", false},
		{"proto/shim/v1", grpc + "/codes", false},
	} {
		if ruling(rules(), c.from).refuses(c.from, c.imp, c.standard) == "" {
			t.Errorf("%s may import %s", c.from, c.imp)
		}
	}
}
