//go:build tools

// Package cnitests pins the upstream CNI plugins' own tests that execute plugins as binaries.
package cnitests

import (
	_ "github.com/containernetworking/plugins/pkg/testutils/echo/client"
	_ "github.com/containernetworking/plugins/pkg/testutils/echo/server"
	_ "github.com/containernetworking/plugins/plugins/main/loopback"
	_ "github.com/containernetworking/plugins/plugins/meta/firewall"
	_ "github.com/containernetworking/plugins/plugins/meta/portmap"
	_ "github.com/onsi/ginkgo/v2"
	_ "github.com/onsi/gomega"
	_ "github.com/onsi/gomega/gbytes"
	_ "github.com/onsi/gomega/gexec"
)
