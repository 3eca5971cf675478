// Command berth-shim is the resident supervisor of many pods: the parent of their containers, the writer of their
// logs and exit records. The daemon (berth-cri) starts it with a listening Unix socket as descriptor 3 and speaks
// proto/shim/v1 with it. See shim/README.md.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"strings"

	"github.com/berth-project/berth/internal/failpoint"
	"github.com/berth-project/berth/shim/internal/app"
)

// version is set by the linker; without it the VCS revision is told.
var version string //nolint:gochecknoglobals // the linker's -X needs a variable

func main() {
	os.Exit(run())
}

func run() int {
	dir := flag.String("dir", "", "the shim's own directory")
	show := flag.Bool("version", false, "print the version and exit")
	points := flag.Bool("failpoints", false, "list the places where a test can make it fail, and exit")
	flag.Parse()
	switch {
	case *show:
		fmt.Println("berth-shim", build())
		return 0
	case *points:
		fmt.Println(strings.Join(failpoint.Names(), "\n"))
		return 0
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if *dir == "" || flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "usage: berth-shim --dir DIR, with a listening Unix socket as descriptor 3")
		return 2
	}
	err := app.Run(context.Background(), app.Config{Dir: *dir, Listener: os.NewFile(3, "listener"), Log: log, Build: build()})
	if err != nil {
		log.Error("berth-shim ends", "err", err)
		return 1
	}
	return 0
}

// build names this binary.
func build() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				return s.Value
			}
		}
	}
	return "devel"
}
