// Command cni-conform runs the conformance suite of package conform against sets of CNI plugins:
//
//	cni-conform [-run TEXT] [-backend iptables] NAME=DIRECTORY ...
//
// It prints a line for each case with a column for each set and fails if the first set fails a case: the others are
// there to compare with.
package main

import (
	"flag"
	"fmt"
	"os"
	"strings"

	conform "github.com/berth-project/berth/e2e/cni-conform"
)

func main() {
	filter := flag.String("run", "", "only cases whose \"type: case\" contains this")
	backend := flag.String("backend", "", "what the node's /etc/berth/cni.json says: nftables or iptables")
	flag.Parse()
	var sets []conform.Set
	for _, arg := range flag.Args() {
		name, dir, ok := strings.Cut(arg, "=")
		if !ok {
			fmt.Fprintf(os.Stderr, "cni-conform: %q is not NAME=DIRECTORY\n", arg)
			os.Exit(2)
		}
		sets = append(sets, conform.Set{Name: name, Dir: dir})
	}
	if len(sets) == 0 {
		fmt.Fprintln(os.Stderr, "usage: cni-conform [-run TEXT] [-backend NAME] NAME=DIRECTORY ...")
		os.Exit(2)
	}
	os.Exit(conform.Isolate(func() int {
		if *backend != "" {
			err := conform.LayerEtc()
			if err == nil {
				err = conform.NodeBackend(*backend)
			}
			if err != nil {
				fmt.Fprintln(os.Stderr, "cni-conform:", err)
				return 1
			}
		}
		if conform.Run(os.Stdout, sets, *filter)[sets[0].Name] > 0 {
			return 1
		}
		return 0
	}))
}
