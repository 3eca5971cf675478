//go:build tools

// Package csiprovisioner pins the external-provisioner that berth-csi is measured against.
package csiprovisioner

import _ "github.com/kubernetes-csi/external-provisioner/v6/cmd/csi-provisioner"
