// Command berth-cni is Berth's CNI plugin. A container runtime executes it once per verb, without
// arguments; "list" and "doctor" are for people. See cni/README.md.
package main

import (
	"fmt"
	"os"

	"github.com/berth-project/berth/cni/internal/human"
	"github.com/berth-project/berth/cni/internal/plugin"
	"github.com/berth-project/berth/internal/failpoint"
)

func main() {
	if os.Getenv(failpoint.Env) != "" {
		if err := failpoint.Load(""); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	if len(os.Args) > 1 {
		os.Exit(human.Run(os.Args[1:], os.Stdout, os.Stderr))
	}
	os.Exit(plugin.Run(plugin.Invocation{
		Name: os.Args[0], Getenv: os.Getenv, Environ: os.Environ(), Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
	}))
}
