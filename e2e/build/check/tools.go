//go:build tools

// Package check pins the programs that `make check` runs.
package check

import (
	_ "github.com/kisielk/errcheck"
	_ "github.com/polyfloyd/go-errorlint"
	_ "golang.org/x/vuln/cmd/govulncheck"
	_ "honnef.co/go/tools/cmd/staticcheck"
	_ "mvdan.cc/gofumpt"
)
