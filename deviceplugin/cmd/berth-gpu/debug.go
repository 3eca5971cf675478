package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/berth-project/berth/deviceplugin/internal/podresources"
	"github.com/berth-project/berth/deviceplugin/internal/view"
	"github.com/berth-project/berth/proto/errs"
	"github.com/berth-project/berth/proto/rpc"
)

// debugServer serves /status, /metrics and pprof on a Unix socket of root's, and /metrics alone over TCP if asked.
type debugServer struct {
	socket, address string
	view            func(context.Context) view.View
	claims          func(*http.ServeMux)
}

// run serves until ctx ends; without a socket or an address it only waits.
func (d *debugServer) run(ctx context.Context) error {
	var listeners []net.Listener
	var handlers []http.Handler
	metrics := http.NewServeMux()
	metrics.HandleFunc("GET /metrics", d.metrics)
	if d.socket != "" {
		l, err := rpc.Listen(d.socket)
		if err != nil {
			return err
		}
		mux := http.NewServeMux()
		mux.HandleFunc("GET /metrics", d.metrics)
		mux.HandleFunc("GET /status", d.status)
		d.claims(mux)
		mux.HandleFunc("/debug/pprof/", pprof.Index)
		mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
		listeners, handlers = append(listeners, l), append(handlers, mux)
	}
	if d.address != "" {
		var lc net.ListenConfig
		l, err := lc.Listen(ctx, "tcp", d.address)
		if err != nil {
			return err
		}
		listeners, handlers = append(listeners, l), append(handlers, metrics)
	}
	done := make(chan error, len(listeners))
	var servers []*http.Server
	for i, l := range listeners {
		srv := &http.Server{Handler: handlers[i], ReadHeaderTimeout: 5 * time.Second}
		servers = append(servers, srv)
		go func() { done <- srv.Serve(l) }() //nolint:gocritic // waited for below
	}
	var all []error
	ended := 0
	select {
	case err := <-done:
		all, ended = append(all, err), 1
	case <-ctx.Done():
	}
	for _, srv := range servers {
		all = append(all, srv.Close())
	}
	for ; ended < len(servers); ended++ {
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			all = append(all, err)
		}
	}
	return errors.Join(all...)
}

func (d *debugServer) status(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	_ = e.Encode(d.view(r.Context())) // a client that went away
}

func (d *debugServer) metrics(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4")
	_ = d.view(r.Context()).Metrics(w) // as above
}

// holders asks the kubelet who has GPUs.
func (d *daemon) holders(ctx context.Context) ([]view.Holder, error) {
	return podresources.Client{Socket: d.podResources}.List(ctx)
}

func (d *daemon) collect(ctx context.Context) view.View {
	v := view.Collect(ctx, d.node, d.server.Status(), d.holders)
	v.Override = d.reload.current()
	v.Claims, v.Given = d.ledger.Claims(), d.ledger.Given()
	return v
}

// status prints what a running daemon answers, as a table or, with --json, as it is.
func status(ctx context.Context, o options, args []string, out io.Writer) error {
	conf, err := load(o.config)
	if err != nil {
		return err
	}
	if conf.DebugSocket == "" {
		return errs.FailedPrecondition.Errorf("the configuration has no debug_socket: status is asked there")
	}
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", conf.DebugSocket)
	}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://berth/status", nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("no berth-gpu answers on %s: %w", conf.DebugSocket, err)
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	if len(args) == 1 && args[0] == "--json" {
		_, err := io.Copy(out, resp.Body)
		return err
	}
	var v view.View
	if err := json.NewDecoder(resp.Body).Decode(&v); err != nil {
		return err
	}
	return v.Table(out)
}
