// Package sysd runs berth-cri as the unit that is installed on nodes, under a real systemd, with the systemd cgroup driver,
// and does to it what an administrator does. It runs in a virtual machine: see package guest.
package sysd

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/e2e/harness"
)

const (
	busybox = "registry.k8s.io/e2e-test-images/busybox:1.29-2"
	unit    = "berth-cri.service"
	netUnit = "berth-netd.service"
	limit   = 2 * time.Minute
)

var (
	lab    *harness.Lab
	client *harness.Client
)

func TestMain(m *testing.M) {
	flag.Parse()
	if os.Getenv("BERTH_CGROUP_DRIVER") != "systemd" {
		fmt.Println("process 1 is not systemd, or nobody says so: `make conformance-vm` runs this in a guest")
		return
	}
	var err error
	if lab, err = harness.FromEnv("sysd"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(inLab(m))
}

func inLab(m *testing.M) int {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	code := 1
	if err := start(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "start:", err)
	} else {
		code = m.Run()
	}
	if code != 0 {
		out, _ := exec.Command("journalctl", "--no-pager", "-o", "cat", "-u", unit, "-u", netUnit).CombinedOutput()
		fmt.Fprintf(os.Stderr, "%s\n", out)
	}
	return code
}

// start installs the units as deploy/systemd has them; the guest has the programs elsewhere. The agent comes first, and
// writes the CNI configuration where nodes have it.
func start(ctx context.Context) error {
	if _, err := lab.StartRegistry(ctx); err != nil {
		return err
	}
	const cni = "/etc/cni/net.d"
	err := errors.Join(os.MkdirAll("/etc/berth", 0o755), os.MkdirAll(lab.Run, 0o755), os.MkdirAll(cni, 0o755), os.Symlink(cni, filepath.Join(lab.Run, "net.d")))
	if err != nil {
		return err
	}
	if _, err := lab.NetdCommand(); err != nil {
		return err
	}
	conf, err := lab.WriteConfig(harness.Options{Netd: true})
	if err != nil {
		return err
	}
	for link, file := range map[string]string{
		"/etc/berth/cri.toml": conf, "/etc/berth/netd.yaml": filepath.Join(lab.Run, "netd.yaml"),
		"/usr/bin/berth-cri": filepath.Join(lab.Bin, "berth-cri"), "/usr/bin/berth-netd": filepath.Join(lab.Bin, "berth-netd"),
	} {
		if err := os.Symlink(file, link); err != nil {
			return err
		}
	}
	if client, err = harness.Dial(lab.Socket()); err != nil {
		return err
	}
	for _, args := range [][]string{{"daemon-reload"}, {"start", netUnit}, {"start", unit}} { // return when the daemons say that they are ready
		if err := systemctl(args...); err != nil {
			return err
		}
	}
	_, err = client.Images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: busybox}})
	return err
}

func systemctl(args ...string) error {
	if out, err := exec.Command("systemctl", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("systemctl %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// shows are properties of a unit, as systemctl has them.
func shows(t *testing.T, unit string, names ...string) string {
	t.Helper()
	out, err := exec.Command("systemctl", "show", "-p", strings.Join(names, ","), unit).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(strings.Fields(string(out)), " ")
}

// pod is one with the parent that a kubelet with the systemd driver makes.
type pod struct {
	t      *testing.T
	id     string
	slice  string
	config *cri.PodSandboxConfig
}

func runPod(t *testing.T, name string, change ...func(*cri.PodSandboxConfig)) *pod {
	t.Helper()
	p := &pod{t: t, slice: "kubepods-burstable-pod" + name + ".slice", config: &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: name, Namespace: "sysd", Uid: name}, LogDirectory: t.TempDir(),
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent:    "kubepods-burstable-pod" + name + ".slice",
			SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}},
		},
	}}
	for _, c := range change {
		c(p.config)
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	r, err := client.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: p.config})
	if err != nil {
		t.Fatal(err)
	}
	p.id = r.GetPodSandboxId()
	t.Cleanup(p.remove)
	return p
}

// scope is the pod's unit, path its cgroup.
func (p *pod) scope() string { return "cri-berth-" + p.id + ".scope" }

func (p *pod) path() string {
	return "/kubepods.slice/kubepods-burstable.slice/" + p.slice + "/" + p.scope()
}

// remove ends the pod and looks that systemd has nothing of it left.
func (p *pod) remove() {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	_, err := client.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.id})
	if err != nil {
		p.t.Error(err)
	}
	if _, err := os.Stat("/sys/fs/cgroup" + p.path()); err == nil {
		p.t.Errorf("%s is there after StopPodSandbox", p.path())
	}
	if got := shows(p.t, p.scope(), "LoadState", "ActiveState"); got != "LoadState=not-found ActiveState=inactive" {
		p.t.Errorf("systemd says of the scope of a pod that was stopped: %s", got)
	}
	if _, err := client.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
		p.t.Error(err)
	}
	if err := systemctl("stop", p.slice); err != nil { // as the kubelet does
		p.t.Error(err)
	}
}

// container creates and starts one; it returns its id and its process.
func (p *pod) container(name string, linux *cri.LinuxContainerConfig, devices []*cri.Device, command ...string) (id string, pid int) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	linux.SecurityContext = &cri.LinuxContainerSecurityContext{NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}}
	r, err := client.Runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: p.id, SandboxConfig: p.config, Config: &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: name}, Image: &cri.ImageSpec{Image: busybox}, Command: command, LogPath: name + ".log", Linux: linux, Devices: devices,
	}})
	if err != nil {
		p.t.Fatal(err)
	}
	id = r.GetContainerId()
	if _, err := client.Runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: id}); err != nil {
		p.t.Fatal(err)
	}
	return id, p.pid(id)
}

// pid is the one process of a container that was just started, by its cgroup.
func (p *pod) pid(id string) int {
	pids, err := harness.CgroupPids(p.path() + "/" + id)
	if err != nil || len(pids) == 0 {
		p.t.Logf("container %s has processes %v (%v)", id, pids, err)
		return 0
	}
	return pids[0]
}

// exec is what a command in a container says.
func exec1(t *testing.T, id, script string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	r, err := client.Runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", script}, Timeout: 60})
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(r.GetStdout()) + string(r.GetStderr()))
}
