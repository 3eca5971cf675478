package soak

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/e2e/harness"
)

// upgrades changes the node's programs again and again, to and fro between two versions, as deploy/README.md says it is
// done: new files over the old ones by rename, then a restart of the daemon, then of the agent.
func (n *node) upgrades(ctx context.Context, say func(string, ...any)) {
	for k := 1; time.Duration(k)*n.Upgrade < n.For-n.Upgrade/2; k++ {
		if !wait(ctx, time.Until(n.begin.Add(time.Duration(k)*n.Upgrade))) {
			return
		}
		from := n.Next
		if k%2 == 0 {
			from = n.Bin
		}
		down, version, err := n.upgrade(context.WithoutCancel(ctx), from)
		if err != nil {
			n.tally.fault("upgrade %d: %v", k, err)
			return
		}
		n.tally.upgrades.Add(1)
		n.tally.down(down)
		say("upgrade %d to %s: %v without a daemon", k, version, down.Round(time.Millisecond))
	}
}

// upgrade returns how long no daemon answered, and the version of the one that does now.
func (n *node) upgrade(ctx context.Context, from string) (down time.Duration, version string, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	want, err := versionOf(ctx, from)
	if err != nil {
		return 0, "", err
	}
	if err := n.install(from, upgraded()...); err != nil {
		return 0, "", err
	}
	begin := time.Now()
	if err := n.daemon.get().Stop(); err != nil {
		return 0, "", err
	}
	if err := n.startDaemon(ctx); err != nil {
		return 0, "", err
	}
	down = time.Since(begin)
	n.life.Add(1)
	var r *cri.VersionResponse
	err = harness.Again(ctx, "Version", func(ctx context.Context) (err error) { // this client may not have seen the new one yet
		r, err = n.client.Runtime.Version(ctx, &cri.VersionRequest{})
		return err
	})
	if err == nil && r.GetRuntimeVersion() != want {
		err = fmt.Errorf("the daemon is of version %s, want %s", r.GetRuntimeVersion(), want)
	}
	if err != nil {
		return 0, "", err
	}
	if err := n.netd.get().Stop(); err != nil {
		return 0, "", err
	}
	return down, want, n.startAgent(ctx)
}

// versionOf asks a berth-cri for its version.
func versionOf(ctx context.Context, dir string) (string, error) {
	out, err := exec.CommandContext(ctx, filepath.Join(dir, "berth-cri"), "version").Output()
	return strings.TrimSpace(strings.TrimPrefix(string(out), "berth-cri ")), err
}
