package csi

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth/e2e/harness"
)

// sidecars are the programs that berth-csi's loops stand for, all of upstream's.
func sidecars() []string { return []string{"csi-provisioner", "csi-resizer", "csi-snapshotter"} }

// TestSidecars: berth-csi is plain CSI. Without its loops, with external-provisioner, external-resizer and
// external-snapshotter beside it, the same life of a StatefulSet's volume passes.
func TestSidecars(t *testing.T) {
	x := begin(t, "sidecars")
	x.ok(node.csi.Stop())
	conf, err := os.ReadFile(node.conf)
	x.ok(err)
	plain := node.lab.Run + "/csi-plain.toml"
	x.ok(os.WriteFile(plain, []byte(strings.Replace(string(conf), "enabled = true", "enabled = false", 1)), 0o600))
	x.driver(plain)
	admin, err := node.cluster.Kubeconfig("sidecars", node.cluster.Token("admin"))
	x.ok(err)
	var running []*harness.Process
	defer func() {
		for _, p := range running {
			err = errors.Join(err, p.Stop())
		}
		x.ok(errors.Join(err, node.csi.Stop()))
		x.driver(node.conf)
	}()
	more := map[string][]string{
		"csi-provisioner": {"--node-deployment", "--extra-create-metadata", "--feature-gates=Topology=true", "--strict-topology"},
		"csi-resizer":     {}, "csi-snapshotter": {"--extra-create-metadata"},
	}
	for _, name := range sidecars() {
		argv := append([]string{filepath.Join(node.lab.Tool, name), "--csi-address", socket(), "--kubeconfig", admin}, more[name]...)
		p, err := harness.Start(node.lab.Logs(), name, []string{"NODE_NAME=" + node.lab.Node()}, argv...)
		x.ok(err)
		running = append(running, p)
	}
	x.life("btrfs")
}

// driver starts berth-csi with a configuration and waits until it answers.
func (x *test) driver(conf string) {
	x.Helper()
	var err error
	x.ok(os.RemoveAll(socket()))
	node.csi, err = harness.Start(node.lab.Logs(), "berth-csi", nil, node.lab.Bin+"/berth-csi", "--config", conf)
	x.ok(err)
	x.ok(harness.Until(x.ctx, 20*time.Millisecond, node.csi, func() error { _, err := os.Stat(socket()); return err }))
}
