//go:build tools

// Package critest pins the CRI conformance suite and crictl.
package critest

import (
	_ "sigs.k8s.io/cri-tools/cmd/crictl"
	_ "sigs.k8s.io/cri-tools/pkg/validate"
)
