//go:build tools

// Package csisidecars pins the CSI sidecars that berth-csi replaces and is measured against, and the snapshot controller,
// which a cluster with snapshots has once, whatever its drivers.
package csisidecars

import (
	_ "github.com/kubernetes-csi/external-resizer/v2/cmd/csi-resizer"
	_ "github.com/kubernetes-csi/external-snapshotter/v8/cmd/csi-snapshotter"
	_ "github.com/kubernetes-csi/external-snapshotter/v8/cmd/snapshot-controller"
)
