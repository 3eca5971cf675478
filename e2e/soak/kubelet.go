package soak

import (
	"context"
	"errors"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/e2e/harness"
)

// relist asks what a kubelet asks all the time: lists each second, statistics every ten.
func (n *node) relist(ctx context.Context) {
	for i := 0; wait(ctx, time.Second); i++ {
		err := harness.Again(ctx, "lists", func(ctx context.Context) error {
			_, perr := n.client.Runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
			_, cerr := n.client.Runtime.ListContainers(ctx, &cri.ListContainersRequest{})
			if perr != nil {
				return perr
			}
			return cerr
		})
		if err == nil && i%10 == 0 {
			err = harness.Again(ctx, "statistics", func(ctx context.Context) error {
				_, err := n.client.Runtime.ListPodSandboxStats(ctx, &cri.ListPodSandboxStatsRequest{})
				return err
			})
		}
		if err != nil && ctx.Err() == nil {
			n.tally.fault("%v", err)
		}
	}
}

// events reads the events of containers, and subscribes anew after each upgrade.
func (n *node) events(ctx context.Context) {
	for ctx.Err() == nil {
		s, err := n.client.Runtime.GetContainerEvents(ctx, &cri.GetEventsRequest{})
		for err == nil {
			if _, err = s.Recv(); err == nil {
				n.tally.events.Add(1)
			}
		}
		wait(ctx, 100*time.Millisecond)
	}
}

// pulls has an image come and go once a minute.
func (n *node) pulls(ctx context.Context) {
	for wait(ctx, time.Minute) {
		err := n.pull(ctx, another)
		if err == nil {
			err = harness.Again(ctx, "RemoveImage", func(ctx context.Context) error {
				_, err := n.client.Images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: another}})
				return err
			})
		}
		if err != nil && !errors.Is(ctx.Err(), context.Canceled) {
			n.tally.fault("%v", err)
			continue
		}
		n.tally.pulls.Add(1)
	}
}
