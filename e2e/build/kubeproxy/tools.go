//go:build tools

// Package kubeproxy pins the kube-proxy that the plugin's tests run beside it.
package kubeproxy

import _ "k8s.io/kubernetes/cmd/kube-proxy"
