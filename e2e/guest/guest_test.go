// Package guest runs suites of this module inside a virtual machine (package vm), on cgroup v2 with all controllers and
// with AppArmor, which this machine's own kernel cannot show.
package guest

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth/e2e/vm"
)

// node gives the guest what every node has, an address of its own, and then becomes the command.
const node = `/bin/ip link add uplink type bridge && /bin/ip link set uplink up && /bin/ip address add 192.0.2.1/24 dev uplink &&
/bin/ip route add default via 192.0.2.254 && exec "$@"`

// suite runs a test binary of this module, or of the programs' ("../" and its path), in a guest whose process 1 is nothing but
// the binary's parent.
func suite(t *testing.T, pkg string, limit time.Duration, args ...string) *vm.Result {
	t.Helper()
	return suiteOn(t, false, pkg, limit, args...)
}

// suiteOn runs a test binary of this module in a guest, with or without systemd.
func suiteOn(t *testing.T, systemd bool, pkg string, limit time.Duration, args ...string) *vm.Result {
	t.Helper()
	cache, bin, tools := os.Getenv("BERTH_VM"), os.Getenv("BERTH_BIN"), os.Getenv("BERTH_TOOLS")
	if cache == "" {
		t.Skip("BERTH_VM does not name a directory for kernels: use `make conformance-vm`")
	}
	if bin == "" || tools == "" {
		t.Fatal("BERTH_BIN and BERTH_TOOLS must name the programs")
	}
	work := t.TempDir()
	test := filepath.Join(work, "suite.test")
	compile(t, pkg, test)
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	m := vm.Machine{
		Cache: cache, Work: work, MemoryMB: 3072, DiskMB: 3000, CPUs: 2,
		Programs: []string{"ip", "nft", "bash", "ldd", "apparmor_parser", "sudo=env", "ipcmk", "ipcrm", tools + "/busybox-sh", tools + "/runc"},
		Files: map[string]string{
			"/vm/suite.test": test, "/berth/tools/critest": tools + "/critest", "/berth/tools/busybox-sh": tools + "/busybox-sh", "/berth/tools/runc": tools + "/runc", "/berth/tools/kubelet": tools + "/kubelet",
		},
		Command: append([]string{"/bin/busybox", "sh", "-c", node, "node", "/vm/suite.test", "-test.v", "-test.timeout", limit.String()}, args...),
		Env:     []string{"BERTH_BIN=/berth/bin", "BERTH_TOOLS=/berth/tools", "BERTH_GUEST=1", "BERTH_KEEP=/vm/out"},
		Output:  os.Stderr,
	}
	if golden := filepath.Join("..", pkg, "testdata"); exists(golden) {
		m.Files["/vm/testdata"] = golden
	}
	if systemd {
		m.Systemd = true
		m.Env = append(m.Env, "BERTH_CGROUP_DRIVER=systemd")
		for _, unit := range []string{"berth-cri.service", "berth-netd.service"} {
			m.Files["/etc/systemd/system/"+unit] = "../../deploy/systemd/" + unit
		}
	}
	for _, dir := range []string{"/etc/apparmor", "/etc/apparmor.d", "/usr/share/apparmor-features"} { // what profiles include
		m.Files[dir] = dir
	}
	for _, p := range []string{"berth-cri", "berth-shim", "berth-cni", "berth-netd", "cni/berth", "registry", "testbox"} {
		m.Files["/berth/bin/"+p] = filepath.Join(bin, p)
	}
	r, err := vm.Run(ctx, m)
	if err != nil {
		t.Fatal(err)
	}
	if r.Exit != 0 {
		t.Errorf("%s ends with %d in the guest", pkg, r.Exit)
	}
	if keep := os.Getenv("BERTH_KEEP"); keep != "" {
		if err := os.CopyFS(keep, os.DirFS(filepath.Join(r.Out, "out"))); err != nil {
			t.Error(err)
		}
	}
	return r
}

// compile makes a test binary.
func compile(t *testing.T, pkg, to string) {
	t.Helper()
	module, name := "..", pkg
	if rest, ok := strings.CutPrefix(pkg, "../"); ok {
		module, name = "../..", "./"+rest
	}
	build := exec.Command("go", "test", "-c", "-trimpath", "-ldflags", "-s -w", "-o", to, name)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	build.Dir = module
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, out)
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// TestPrivileges holds the table of security contexts against runc where every capability can be handed on, on cgroup v2.
func TestPrivileges(t *testing.T) {
	suite(t, "./privilege", 20*time.Minute)
}

// TestLimits changes the limits of groups in which something runs, on cgroup v2.
func TestLimits(t *testing.T) {
	suite(t, "../cri/internal/cgroup", 5*time.Minute, "-test.run", "TestChange|TestMemoryInUse")
}

// TestCritest is the conformance suite on cgroup v2 with the cgroupfs driver, AppArmor's specs included.
func TestCritest(t *testing.T) {
	suite(t, "./critest", 40*time.Minute, "-test.run", "TestSuite")
}

// TestCritestSystemd is the conformance suite with the systemd driver, in a guest whose process 1 is systemd.
func TestCritestSystemd(t *testing.T) {
	suiteOn(t, true, "./critest", 40*time.Minute, "-test.run", "TestSuite")
}

// TestSystemd runs the daemon as the unit that nodes have, and does to systemd and to the unit what administrators do.
func TestSystemd(t *testing.T) {
	suiteOn(t, true, "./sysd", 20*time.Minute)
}

// TestKubeletSystemd is a real kubelet with the systemd driver, whose slices the pods' scopes lie in.
func TestKubeletSystemd(t *testing.T) {
	suiteOn(t, true, "./kubelet", 20*time.Minute, "-test.run", "TestInitAndSidecar|TestOOMKilled|TestTerminationMessage|TestSystemdSlices")
}

// TestTortureSystemd lets the daemon die at each step of a pod's life, those of making and ending its scope too, and, like its
// shims, before a sample of their system calls. Kills at random have times to keep, which an emulated processor cannot; and
// Linux 6.12 does not tell a shim's successor how a container that it has adopted ended (PIDFD_INFO_EXIT is of 6.15).
func TestTortureSystemd(t *testing.T) {
	suiteOn(t, true, "./torture", 30*time.Minute, "-test.run", "TestFailpoints|TestStorm|TestKilledAtEachCall")
}

// TestAppArmor asks containers what the runtime's own AppArmor profile lets them do.
func TestAppArmor(t *testing.T) {
	suite(t, "./lsm", 15*time.Minute, "-test.run", "TestDefaultProfile")
}
