//go:build tools

// Package csisidecars pins the CSI sidecars that berth-csi replaces and is measured against.
package csisidecars

import (
	_ "github.com/kubernetes-csi/external-resizer/v2/cmd/csi-resizer"
	_ "github.com/kubernetes-csi/external-snapshotter/v8/cmd/csi-snapshotter"
)
