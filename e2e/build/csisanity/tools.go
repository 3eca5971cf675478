//go:build tools

// Package csisanity pins the CSI conformance suite that every backend of berth-csi is run against.
package csisanity

import _ "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity"
