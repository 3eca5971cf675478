package pods

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/e2e/harness"
)

// Output runs a command in a pod of its own, as a container's first process, and returns what it wrote.
func (r *Runner) Output(ctx context.Context, name string, command ...string) (string, error) {
	p, err := r.prepare(name)
	if err != nil {
		return "", err
	}
	text, err := r.output(ctx, p, command)
	if p.id != "" {
		err = errors.Join(err, r.remove(context.WithoutCancel(ctx), p))
	}
	return text, errors.Join(err, p.clean())
}

func (r *Runner) output(ctx context.Context, p *pod, command []string) (string, error) {
	if err := r.run(ctx, p); err != nil {
		return "", err
	}
	made, err := r.Client.Runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: p.id, Config: p.container("out", command...), SandboxConfig: p.sandbox})
	if err != nil {
		return "", err
	}
	id := made.GetContainerId()
	if _, err := r.Client.Runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: id}); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	err = harness.Until(ctx, 20*time.Millisecond, nil, func() error {
		resp, err := r.Client.Runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: id})
		if err == nil && resp.GetStatus().GetState() != cri.ContainerState_CONTAINER_EXITED {
			err = fmt.Errorf("%v is still %s", command, resp.GetStatus().GetState())
		}
		return err
	})
	if err != nil {
		return "", err
	}
	b, err := os.ReadFile(filepath.Join(p.dir, "logs", "out.log"))
	return plain(string(b)), err
}

// plain takes the CRI log format away: time, stream and tag before each line, long lines in several parts.
func plain(log string) string {
	var out strings.Builder
	for line := range strings.Lines(log) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
		if len(f) < 4 {
			continue
		}
		out.WriteString(f[3])
		if f[2] == "F" {
			out.WriteByte('\n')
		}
	}
	return out.String()
}

// Pull pulls an image and says how long it took.
func Pull(ctx context.Context, c *harness.Client, ref string) (time.Duration, error) {
	start := time.Now()
	_, err := c.Images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref, UserSpecifiedImage: ref}})
	if err != nil {
		return 0, fmt.Errorf("pull %s: %w", ref, err)
	}
	return time.Since(start), nil
}
