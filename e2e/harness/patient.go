package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Again repeats a call as a kubelet does while the daemon is away, until it is answered or ctx ends. Answers that took long are
// told on stderr; the error names what was asked.
func Again(ctx context.Context, what string, call func(context.Context) error) error {
	for {
		try, cancel := context.WithTimeout(ctx, 20*time.Second)
		begin := time.Now()
		err := call(try)
		cancel()
		if took := time.Since(begin); took > 3*time.Second && what != "StopContainer" {
			fmt.Fprintf(os.Stderr, "%s: %s took %v: %v\n", time.Now().UTC().Format("15:04:05.000"), what, took, err)
		}
		switch status.Code(err) {
		case codes.Unavailable, codes.Canceled, codes.DeadlineExceeded:
		default:
			if err != nil {
				err = fmt.Errorf("%s: %w", what, err)
			}
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w (last: %w)", what, ctx.Err(), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// StartContainer is Again's. An answer lost with the daemon is made up for by the container's state.
func (c *Client) StartContainer(ctx context.Context, id string) error {
	err := Again(ctx, "StartContainer", func(ctx context.Context) error {
		_, err := c.Runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: id})
		return err
	})
	if status.Code(errors.Unwrap(err)) == codes.FailedPrecondition {
		if st, serr := c.ContainerStatus(ctx, id); serr == nil && st.GetStartedAt() != 0 && st.GetReason() != "StartError" {
			return nil
		}
	}
	return err
}

// ContainerStatus is Again's.
func (c *Client) ContainerStatus(ctx context.Context, id string) (st *cri.ContainerStatus, err error) {
	err = Again(ctx, "ContainerStatus", func(ctx context.Context) error {
		r, err := c.Runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: id})
		st = r.GetStatus()
		return err
	})
	return st, err
}

// PodSandboxStatus is Again's.
func (c *Client) PodSandboxStatus(ctx context.Context, id string) (st *cri.PodSandboxStatus, err error) {
	err = Again(ctx, "PodSandboxStatus", func(ctx context.Context) error {
		r, err := c.Runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: id})
		st = r.GetStatus()
		return err
	})
	return st, err
}

// StopContainer is Again's; grace is in whole seconds.
func (c *Client) StopContainer(ctx context.Context, id string, grace time.Duration) error {
	return Again(ctx, "StopContainer", func(ctx context.Context) error {
		_, err := c.Runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: id, Timeout: int64(grace.Seconds())})
		return err
	})
}
