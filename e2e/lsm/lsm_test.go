// Package lsm asks containers what an LSM lets them do. It runs where AppArmor is active: in a virtual machine, see package
// guest.
package lsm

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/e2e/harness"
)

const busybox = "registry.k8s.io/e2e-test-images/busybox:1.29-2"

var client *harness.Client

func TestMain(m *testing.M) {
	flag.Parse()
	if on, err := os.ReadFile("/sys/module/apparmor/parameters/enabled"); err != nil || !strings.HasPrefix(string(on), "Y") {
		fmt.Println("this kernel has no active AppArmor (CONFIG_SECURITY_APPARMOR, lsm=): nothing to ask; `make conformance-vm` does")
		return
	}
	lab, err := harness.FromEnv("lsm")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(harness.Isolate(lab, func() int { return inLab(m, lab) }))
}

func inLab(m *testing.M, lab *harness.Lab) int {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	code := 1
	if err := start(ctx, lab); err != nil {
		fmt.Fprintln(os.Stderr, "start:", err)
	} else {
		code = m.Run()
	}
	if code != 0 {
		lab.KeepLogs(os.Stderr)
	}
	if err := harness.Stop(ctx, lab); err != nil {
		fmt.Fprintln(os.Stderr, "stop:", err)
		code = 1
	}
	return code
}

func start(ctx context.Context, lab *harness.Lab) error {
	if _, err := lab.StartRegistry(ctx); err != nil {
		return err
	}
	conf, err := lab.WriteConfig(harness.Options{})
	if err != nil {
		return err
	}
	p, err := harness.Start(lab.Logs(), "berth-cri", nil, filepath.Join(lab.Bin, "berth-cri"), "--config", conf)
	if err != nil {
		return err
	}
	if client, err = harness.Dial(lab.Socket()); err != nil {
		return err
	}
	if err := harness.Until(ctx, 50*time.Millisecond, p, func() error {
		_, err := client.Runtime.Version(ctx, &cri.VersionRequest{})
		return err
	}); err != nil {
		return err
	}
	_, err = client.Images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: busybox}})
	return err
}

// TestDefaultProfile: a container that names no profile, or RuntimeDefault, is under the runtime's, which holds although the
// container was given every capability and no seccomp filter; one that is unconfined or privileged is not.
func TestDefaultProfile(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	sandbox := &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: "lsm", Namespace: "default", Uid: "lsm"}, LogDirectory: t.TempDir(),
		Linux: &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}}},
	}
	pod, err := client.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: sandbox})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.RemoveAll(context.Background()); err != nil {
			t.Error(err)
		}
	})
	for name, c := range map[string]struct {
		profile *cri.SecurityProfile
		bound   bool
	}{
		"none":       {nil, true},
		"default":    {&cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}, true},
		"unconfined": {&cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}, false},
	} {
		created, err := client.Runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: pod.GetPodSandboxId(), SandboxConfig: sandbox, Config: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: name}, Image: &cri.ImageSpec{Image: busybox}, Command: []string{"sleep", "1000"}, LogPath: name + ".log",
			Linux: &cri.LinuxContainerConfig{Resources: &cri.LinuxContainerResources{}, SecurityContext: &cri.LinuxContainerSecurityContext{
				Apparmor: c.profile, NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER},
				Capabilities: &cri.Capability{AddCapabilities: []string{"ALL"}}, Seccomp: &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined},
			}},
		}})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		id := created.GetContainerId()
		if _, err := client.Runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: id}); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		said := func(script string) string {
			r, err := client.Runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", script}, Timeout: 60})
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			return strings.TrimSpace(string(r.GetStdout()) + string(r.GetStderr()))
		}
		want := map[bool]string{true: "berth-default (enforce)", false: "unconfined"}[c.bound]
		for _, who := range []string{"1", "self"} {
			if got := said("cat /proc/" + who + "/attr/current"); got != want {
				t.Errorf("%s: process %s is under %q, want %q", name, who, got, want)
			}
		}
		if got := said("mount -t tmpfs none /mnt && echo mounted"); c.bound != strings.Contains(got, "denied") || c.bound == strings.Contains(got, "mounted") {
			t.Errorf("%s: mount says %q", name, got)
		}
		if got := said("echo works > /tmp/file && cat /tmp/file && kill -0 1 && echo signals"); got != "works\nsignals" {
			t.Errorf("%s: ordinary work says %q", name, got)
		}
		begin := time.Now()
		if _, err := client.Runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: id, Timeout: 1}); err != nil || time.Since(begin) > 30*time.Second {
			t.Errorf("%s: stop takes %v: %v", name, time.Since(begin), err)
		}
	}
}
