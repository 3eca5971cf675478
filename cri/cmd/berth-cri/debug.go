package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/pprof"
	"sync"
	"time"

	"github.com/berth-project/berth/cri/internal/pod"
	"github.com/berth-project/berth/proto/rpc"
)

// timelines is of how many pods the phases are remembered.
const timelines = 256

// debugServer serves Prometheus metrics, pprof, pod timelines and image archives on a Unix socket of root's.
type debugServer struct {
	socket string
	start  time.Time
	images archives
	calls  rpc.Calls

	mu     sync.Mutex
	phases map[string][]pod.Phase
	order  []string // pods in phases, oldest first
}

func newDebugServer(socket string, images archives) *debugServer {
	return &debugServer{socket: socket, start: time.Now(), images: images, phases: map[string][]pod.Phase{}}
}

func (d *debugServer) phase(id string, p pod.Phase) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, known := d.phases[id]; !known {
		d.order = append(d.order, id)
		if len(d.order) > timelines {
			delete(d.phases, d.order[0])
			d.order = d.order[1:]
		}
	}
	d.phases[id] = append(d.phases[id], p)
}

// run serves until ctx ends; without a socket it only waits.
func (d *debugServer) run(ctx context.Context) error {
	if d.socket == "" {
		<-ctx.Done()
		return nil
	}
	l, err := rpc.Listen(d.socket)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", d.metrics)
	mux.HandleFunc("GET /timeline", d.timeline)
	mux.HandleFunc("POST /images/import", serveImport(d.images))
	mux.HandleFunc("GET /images/export", serveExport(d.images))
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }() //nolint:gocritic // waited for below
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		err := srv.Close()
		if serr := <-done; !errors.Is(serr, http.ErrServerClosed) {
			err = errors.Join(err, serr)
		}
		return err
	}
}

// metrics is the Prometheus text format, version 0.0.4.
func (d *debugServer) metrics(w http.ResponseWriter, _ *http.Request) {
	var b bytes.Buffer
	d.calls.Metrics(&b, "berth_cri", "CRI")
	fmt.Fprintf(&b, "# HELP berth_cri_start_time_seconds When the daemon started.\n# TYPE berth_cri_start_time_seconds gauge\nberth_cri_start_time_seconds %d\n", d.start.Unix())
	w.Header().Set("Content-Type", "text/plain; version=0.0.4")
	_, _ = w.Write(b.Bytes()) // the client is gone
}

// timeline is the phases of recent pods' starts, by pod id, as JSON.
func (d *debugServer) timeline(w http.ResponseWriter, _ *http.Request) {
	d.mu.Lock()
	defer d.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(d.phases) // the client is gone
}
