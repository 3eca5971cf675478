package pod

import (
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/proto/errs"
)

// limits are a container's memory limit, CPU shares or weight, quota and period, as the kernel has them.
func (n *node) limits(c *Container) string {
	n.t.Helper()
	group, err := n.Group(c)
	if err != nil {
		n.t.Fatal(err)
	}
	files := []string{n.groups.V1["memory"] + group + "/memory.limit_in_bytes", n.groups.V1["cpu"] + group + "/cpu.shares", n.groups.V1["cpu"] + group + "/cpu.cfs_quota_us", n.groups.V1["cpu"] + group + "/cpu.cfs_period_us"}
	if n.groups.V2 {
		files = []string{n.groups.Unified + group + "/memory.max", n.groups.Unified + group + "/cpu.weight", n.groups.Unified + group + "/cpu.max"}
	}
	var all []string
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			n.t.Fatal(err)
		}
		all = append(all, strings.TrimSpace(string(b)))
	}
	return strings.Join(all, " ")
}

// TestUpdate: what the kernel takes is shown, what it refuses changes nothing.
func TestUpdate(t *testing.T) {
	n := newNode(t)
	id := n.start(n.run("update"), "c", "/bin/sleep", "100")
	c, err := n.Container(id)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Update(t.Context(), id, &cri.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuShares: 512}); err != nil {
		t.Fatal(err)
	}
	if r := c.State().Resources; r.GetMemoryLimitInBytes() != 64<<20 || r.GetCpuShares() != 512 {
		t.Errorf("%v", r)
	}
	before := n.limits(c)
	if err := n.Update(t.Context(), id, &cri.LinuxContainerResources{MemoryLimitInBytes: 32 << 20, CpuShares: 256, CpusetCpus: "4000"}); err == nil {
		t.Error("a CPU that does not exist was accepted")
	}
	if r := c.State().Resources; r.GetCpusetCpus() != "" || r.GetMemoryLimitInBytes() != 64<<20 || r.GetCpuShares() != 512 {
		t.Errorf("a refused update shows: %v", r)
	}
	if after := n.limits(c); after != before {
		t.Errorf("a refused update is in the kernel: %s, was %s", after, before)
	}
	for _, r := range []*cri.LinuxContainerResources{{CpuQuota: 20000, CpuPeriod: 100000}, {CpuPeriod: 50000}} { // a period alone keeps the quota
		if err := n.Update(t.Context(), id, r); err != nil {
			t.Fatal(err)
		}
	}
	if got := n.limits(c); !strings.HasSuffix(got, " 20000 50000") {
		t.Errorf("quota and period are %s", got)
	}
	if err := errors.Join(unix.Kill(c.State().Pid, unix.SIGKILL)); err != nil {
		t.Fatal(err)
	}
	n.await(id)
	if err := n.Update(t.Context(), id, &cri.LinuxContainerResources{CpuShares: 2}); !errors.Is(err, errs.FailedPrecondition) {
		t.Errorf("update of an ended container: %v", err)
	}
}
