// Command cni-upstream runs the containernetworking project's own binary-level tests against a set of plugins:
//
//	cni-upstream PLUGINS TOOLS SOURCE
//
// SOURCE is the project's source tree. Under the name "go" it is what those tests build with; see package upstream.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	conform "github.com/berth-project/berth/e2e/cni-conform"
	upstream "github.com/berth-project/berth/e2e/cni-upstream"
)

const pluginsEnv, toolsEnv = "BERTH_UPSTREAM_PLUGINS", "BERTH_UPSTREAM_TOOLS"

func main() {
	if filepath.Base(os.Args[0]) == "go" {
		if err := upstream.FakeGo(os.Args[1:], os.Getenv(pluginsEnv), os.Getenv(toolsEnv)); err != nil {
			fmt.Fprintln(os.Stderr, "go:", err)
			os.Exit(1)
		}
		return
	}
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: cni-upstream PLUGINS TOOLS SOURCE")
		os.Exit(2)
	}
	os.Exit(conform.Isolate(func() int { return run(os.Args[1], os.Args[2], os.Args[3]) }))
}

func run(plugins, tools, source string) int {
	self, err := os.Executable()
	if err != nil {
		fmt.Fprintln(os.Stderr, "cni-upstream:", err)
		return 1
	}
	_ = os.Setenv(pluginsEnv, plugins) // valid names
	_ = os.Setenv(toolsEnv, tools)
	l := &upstream.Lab{Plugins: plugins, Tools: tools, Source: source}
	if err := l.Prepare(self); err != nil {
		fmt.Fprintln(os.Stderr, "cni-upstream:", err)
		return 1
	}
	defer l.Close() //nolint:errcheck // below /tmp
	failed := 0
	for _, s := range upstream.Suites() {
		summary, err := l.Run(s)
		if err != nil {
			failed++
			_, after, _ := strings.Cut(err.Error(), "Summarizing")
			fmt.Printf("  FAIL %-48s %s\n%s\n", s.Name, summary, after)
			if os.Getenv("BERTH_VERBOSE") != "" {
				fmt.Println(err)
			}
			continue
		}
		fmt.Printf("  ok   %-48s %s\n", s.Name, summary)
	}
	if failed > 0 {
		fmt.Printf("cni-upstream: %d suites fail\n", failed)
		return 1
	}
	fmt.Println("cni-upstream: every suite of upstream's passes")
	return 0
}
