// Package privilege holds what a process may do and what it sees against the security context that the kubelet sent: a
// table of contexts, for a container's first process and for an exec, against a golden file and against runc in the same run.
package privilege

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/e2e/harness"
)

const (
	busybox    = "registry.k8s.io/e2e-test-images/busybox:1.29-2"
	userImages = "gcr.io/k8s-staging-cri-tools/test-image-"
	// oracle is the RuntimeClass handler that is runc.
	oracle = "runc"
)

var (
	update = flag.Bool("update", false, "write the golden file")
	lab    *harness.Lab
	client *harness.Client
)

func TestMain(m *testing.M) {
	flag.Parse()
	var err error
	if lab, err = harness.FromEnv("privilege"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	lab.Pods = "10.89.0.0/16"
	os.Exit(harness.Isolate(lab, func() int { return inLab(m) }))
}

func inLab(m *testing.M) int {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	code := 1
	if err := harness.Stop(ctx, lab); err != nil {
		fmt.Fprintln(os.Stderr, "leftovers of an earlier run:", err)
		return 1
	}
	if err := start(ctx); err != nil {
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

func start(ctx context.Context) error {
	if _, err := lab.StartRegistry(ctx); err != nil {
		return err
	}
	more := fmt.Sprintf("\n[runtimes.%s]\nbinary = %q\n", oracle, filepath.Join(lab.Tool, "runc"))
	if _, err := lab.StartCRI(ctx, harness.Options{More: more}); err != nil {
		return err
	}
	var err error
	if client, err = harness.Dial(lab.Socket()); err != nil {
		return err
	}
	for _, ref := range images() {
		if _, err := client.Images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}}); err != nil {
			return fmt.Errorf("%s: %w", ref, err)
		}
	}
	return nil
}

func images() []string {
	return []string{
		busybox, userImages + "user-uid:latest", userImages + "user-username:latest", userImages + "user-uid-group:latest",
		userImages + "user-username-group:latest", userImages + "predefined-group:latest",
	}
}
