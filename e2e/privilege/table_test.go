package privilege

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/e2e/harness"
)

const golden = "testdata/contexts.golden"

// probe prints a process's privileges: what the kernel says of it, and what it gets when it tries. It only tries what
// stays in its own mounts, because some rows share everything else with the node.
const probe = `
sed -n -E 's/^(Uid|Gid|Groups|CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp):/\1/p' /proc/self/status
echo uid_map $(cat /proc/self/uid_map)
for n in cgroup ipc mnt net pid user uts; do echo ns $n $(readlink /proc/self/ns/$n); done
echo umask $(umask)
echo cwd $(pwd)
can() { what=$1; shift; if "$@" >/dev/null 2>&1; then echo can $what; else echo cannot $what; fi; }
can write-root touch /probe-$$
can write-tmp touch /dev/shm/probe-$$
can chown chown 12:12 /dev/shm/probe-$$
can mknod mknod /dev/probe-$$ c 1 3
can chroot chroot / /bin/true
can mount mount -t tmpfs none /mnt
opens() { sh -c ": >>$1"; } # for writing, and writes nothing
can write-proc-sys opens /proc/sys/kernel/hostname
can write-sys opens /sys/kernel/rcu_expedited
can write-cgroup opens $(ls /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/memory/cgroup.procs 2>/dev/null)
can read-passwd cat /etc/passwd
can write-etc touch /etc/probe
can read-timers test $(head -c 1 /proc/timer_list 2>/dev/null | wc -c) = 1
can see-host-devices test -e /dev/kmsg
can port80 test $(cat /proc/sys/net/ipv4/ip_unprivileged_port_start) -le 80
echo shm $(cat /proc/sys/kernel/shm_rmid_forced)
rm -f /etc/probe /probe-$$ /dev/shm/probe-$$ /dev/probe-$$ 2>/dev/null
echo end
`

// view is what the probe said, a line of "name=value" words.
type view string

// node is what a view is told apart from: the node's own namespaces, by kind, and the capabilities that it may hand on.
type node struct {
	namespaces map[string]string
	bounding   uint64
}

func thisNode(t *testing.T) node {
	t.Helper()
	n := node{namespaces: map[string]string{}}
	for _, kind := range []string{"cgroup", "ipc", "mnt", "net", "pid", "user", "uts"} {
		to, err := os.Readlink("/proc/self/ns/" + kind)
		if err != nil {
			t.Fatal(err)
		}
		n.namespaces[kind] = to
	}
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(b), "CapBnd:")
	if n.bounding, err = strconv.ParseUint(strings.Fields(after)[0], 16, 64); err != nil {
		t.Fatal(err)
	}
	return n
}

// view normalises what the probe says: namespaces are the node's or others, sets of capabilities are named.
func (n node) view(text string) (view, error) {
	var out, can []string
	ended := false
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		switch {
		case len(f) == 0:
		case f[0] == "end":
			ended = true
		case f[0] == "ns" && len(f) == 3:
			if n.namespaces[f[1]] == f[2] {
				out = append(out, "host-"+f[1])
			}
		case f[0] == "can":
			can = append(can, f[1])
		case f[0] == "cannot":
		case strings.HasPrefix(f[0], "Cap"):
			set, err := strconv.ParseUint(f[1], 16, 64)
			if err != nil {
				return "", err
			}
			out = append(out, strings.ToLower(f[0][3:])+"="+n.capabilities(set))
		case f[0] == "Uid" || f[0] == "Gid":
			if f[1] != f[2] || f[1] != f[3] || f[1] != f[4] {
				return "", fmt.Errorf("real, effective, saved and file-system ids differ: %s", line)
			}
			out = append(out, strings.ToLower(f[0])+"="+f[1])
		default:
			out = append(out, strings.ToLower(f[0])+"="+strings.Join(f[1:], ","))
		}
	}
	if !ended {
		return "", fmt.Errorf("the probe did not come to its end: %s", text)
	}
	return view(strings.Join(out, " ") + "\n     can: " + strings.Join(can, " ")), nil
}

// capabilities names a set: by its numbers if it is small, else by what it lacks of all that this node may hand on.
func (n node) capabilities(set uint64) string {
	if set == 0 {
		return "none"
	}
	if lacks := n.bounding &^ set; bits.OnesCount64(set) > bits.OnesCount64(n.bounding)/2 {
		if lacks == 0 {
			return "all"
		}
		return "all-but-" + numbers(lacks)
	}
	return numbers(set)
}

func numbers(set uint64) string {
	var out []string
	for ; set != 0; set &= set - 1 {
		out = append(out, strconv.Itoa(bits.TrailingZeros64(set)))
	}
	return strings.Join(out, "+")
}

// TestTable runs every context by the runtime's own executor and by runc.
func TestTable(t *testing.T) {
	n := thisNode(t)
	want := readGolden(t)
	var table strings.Builder
	rows := contexts(t)
	if len(rows) < 40 {
		t.Errorf("%d contexts, want 40", len(rows))
	}
	compared := 0
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			init, exec := n.run(t, r, "")
			text := fmt.Sprintf("%s\nexec %s\n", init, exec)
			if init == exec {
				text = fmt.Sprintf("%s\nexec as init\n", init)
			}
			text = "# " + r.name + "\ninit " + text
			table.WriteString(text)
			if !*update && want[r.name] != text {
				t.Errorf("got\n%swant\n%s", text, want[r.name])
			}
			rinit, rexec, err := n.try(t, r, oracle)
			if err != nil && lacksCapability(n) && strings.Contains(err.Error(), "apply caps") {
				t.Log("runc refuses it here, where CAP_SYS_RESOURCE cannot be handed on; in the virtual machine it does not")
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			compared++
			for _, who := range []struct {
				what      string
				own, runc view
			}{{"init", init, rinit}, {"exec", exec, rexec}} {
				if who.own != who.runc {
					t.Errorf("%s of runc is\n     %s\nand ours\n     %s", who.what, who.runc, who.own)
				}
			}
		})
	}
	t.Logf("%d contexts, %d of them compared with runc, for init and exec", len(rows), compared)
	if *update {
		if err := os.WriteFile(golden, []byte(table.String()), 0o644); err != nil {
			t.Error(err)
		}
	}
}

// lacksCapability says that this machine has not all capabilities: runc then refuses a spec that asks for all.
func lacksCapability(n node) bool { return n.bounding&(1<<24) == 0 }

func readGolden(t *testing.T) map[string]string {
	t.Helper()
	b, err := os.ReadFile(golden)
	if err != nil && !*update {
		t.Fatal(err)
	}
	all := map[string]string{}
	for part := range strings.SplitSeq(string(b), "# ") {
		if name, _, ok := strings.Cut(part, "\n"); ok {
			all[name] = "# " + part
		}
	}
	return all
}

func (n node) run(t *testing.T, r row, handler string) (init, exec view) {
	t.Helper()
	init, exec, err := n.try(t, r, handler)
	if err != nil {
		t.Fatal(err)
	}
	return init, exec
}

// try runs a context's pod with one container and returns what its first process and an exec see.
func (n node) try(t *testing.T, r row, handler string) (init, exec view, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	logs := t.TempDir()
	sandbox := &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: "privilege", Namespace: "default", Uid: r.name + handler}, LogDirectory: logs,
		Linux: &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}}},
	}
	r.pod(sandbox)
	ns := sandbox.GetLinux().GetSecurityContext().GetNamespaceOptions()
	sc := &cri.LinuxContainerSecurityContext{
		NamespaceOptions: ns, Apparmor: &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}, // one table for nodes with and without it: see package lsm
		Seccomp:       &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault},
		MaskedPaths:   []string{"/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"},
		ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
	}
	r.sc(sc)
	sandbox.Linux.SecurityContext.Privileged = sc.GetPrivileged()
	run, err := client.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: sandbox, RuntimeHandler: handler})
	if err != nil {
		return "", "", err
	}
	defer func() { err = errors.Join(err, client.RemoveAll(context.WithoutCancel(ctx))) }()
	image := r.image
	if image == "" {
		image = busybox
	}
	made, err := client.Runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: run.GetPodSandboxId(), SandboxConfig: sandbox, Config: &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: "c"}, Image: &cri.ImageSpec{Image: image}, Command: []string{"sh", "-c", probe + "exec sleep 1000"}, LogPath: "c.log",
		Linux: &cri.LinuxContainerConfig{Resources: &cri.LinuxContainerResources{}, SecurityContext: sc},
	}})
	if err != nil {
		return "", "", err
	}
	if _, err := client.Runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: made.GetContainerId()}); err != nil {
		return "", "", err
	}
	if err := harness.Until(ctx, 10*time.Millisecond, nil, func() error {
		init, err = n.view(said(filepath.Join(logs, "c.log")))
		return err
	}); err != nil {
		return "", "", err
	}
	x, err := client.Runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: made.GetContainerId(), Cmd: []string{"sh", "-c", probe}, Timeout: 30})
	if err != nil {
		return "", "", err
	}
	exec, err = n.view(string(x.GetStdout()))
	return init, exec, err
}

// said is the text of a CRI log.
func said(file string) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	var out strings.Builder
	for line := range strings.Lines(string(b)) {
		if f := strings.SplitN(line, " ", 4); len(f) == 4 {
			out.WriteString(f[3])
		}
	}
	return out.String()
}
