//go:build tools

// Package tools pins flannel, the network agent that berth-netd is measured against and that clusters move from.
package tools

import _ "github.com/flannel-io/flannel"
