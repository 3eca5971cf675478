//go:build tools

// Package runc pins the OCI runtime that serves as the executor's oracle.
package runc

import _ "github.com/opencontainers/runc"
