// Command berth-bgp speaks BGP for berth-netd, which starts it, tells it what to be over file descriptor 3, and keeps
// the kernel's routes to itself. It is of no use alone, and refuses to run as root.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/berth-project/berth/cni/internal/bgpd"
)

var version = "dev"

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "berth-bgp:", err)
		os.Exit(1)
	}
}

func run() error {
	if err := bgpd.Confine(); err != nil {
		return err
	}
	f := os.NewFile(3, "agent")
	conn, err := net.FileConn(f)
	if err != nil {
		return fmt.Errorf("file descriptor 3 is not the agent's socket: %w", err)
	}
	if err := f.Close(); err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // the process ends
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	log := slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	return bgpd.Run(ctx, conn, version, log)
}
