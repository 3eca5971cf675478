package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/berth-project/berth/csi/internal/volume"
	"github.com/berth-project/berth/proto/rpc"
)

// debugServer serves Prometheus metrics, the operator's tables and pprof on a Unix socket of root's.
type debugServer struct {
	socket  string
	start   time.Time
	volumes *volume.Manager
	calls   rpc.Calls
	// unclaimed are the volumes that Kubernetes does not know; nil: it is not asked.
	unclaimed func(context.Context) ([]string, error)
}

func newDebugServer(socket string, m *volume.Manager) *debugServer {
	return &debugServer{socket: socket, start: time.Now(), volumes: m}
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
	mux.HandleFunc("GET /tables/", d.tables)
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() }) // Serve says so
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// tables are what the operator's commands print, as JSON.
type tables struct {
	Pools     []volume.State    `json:"pools,omitempty"`
	Volumes   []volume.Volume   `json:"volumes,omitempty"`
	Snapshots []volume.Snapshot `json:"snapshots,omitempty"`
	Orphans   []volume.Orphan   `json:"orphans,omitempty"`
}

func (d *debugServer) tables(w http.ResponseWriter, r *http.Request) {
	var t tables
	var err error
	switch r.URL.Path {
	case "/tables/pools":
		t.Pools = d.volumes.States(r.Context())
	case "/tables/volumes":
		t.Volumes, t.Snapshots = d.volumes.Volumes(), d.volumes.Snapshots()
	case "/tables/orphans":
		t.Orphans, err = d.orphans(r.Context())
	default:
		http.NotFound(w, r)
		return
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(t) // the client is gone
}

// orphans are those of the pools, and the volumes that have no PersistentVolume.
func (d *debugServer) orphans(ctx context.Context) ([]volume.Orphan, error) {
	all, err := d.volumes.Orphans(ctx)
	if err != nil || d.unclaimed == nil {
		return all, err
	}
	ids, err := d.unclaimed(ctx)
	for _, id := range ids {
		if v, verr := d.volumes.Volume(id); verr == nil { // else it has gone meanwhile
			all = append(all, volume.Orphan{Pool: v.Pool, ID: id, Kind: "volume without PersistentVolume"})
		}
	}
	return all, err
}

// metrics is the Prometheus text format, version 0.0.4.
func (d *debugServer) metrics(w http.ResponseWriter, r *http.Request) {
	var b bytes.Buffer
	d.calls.Metrics(&b, "berth_csi", "CSI")
	family := func(name, help string, value func(volume.State) int64) {
		fmt.Fprintf(&b, "# HELP berth_csi_pool_%[1]s %[2]s\n# TYPE berth_csi_pool_%[1]s gauge\n", name, help)
		for _, s := range d.volumes.States(r.Context()) {
			fmt.Fprintf(&b, "berth_csi_pool_%s{pool=%q,backend=%q} %d\n", name, s.Name, s.Kind, value(s))
		}
	}
	family("limit_bytes", "What the pool may promise.", func(s volume.State) int64 { return s.Limit })
	family("promised_bytes", "What it has promised.", func(s volume.State) int64 { return s.Promised })
	family("available_bytes", "What one more volume may get.", func(s volume.State) int64 { return s.Free })
	family("volumes", "Volumes.", func(s volume.State) int64 { return int64(s.Volumes) })
	family("snapshots", "Snapshots.", func(s volume.State) int64 { return int64(s.Snapshots) })
	family("problems", "Conditions that something is wrong.", func(s volume.State) int64 { return int64(len(s.Problems)) })
	fmt.Fprintf(&b, "# HELP berth_csi_start_time_seconds When the driver started.\n# TYPE berth_csi_start_time_seconds gauge\nberth_csi_start_time_seconds %d\n", d.start.Unix())
	w.Header().Set("Content-Type", "text/plain; version=0.0.4")
	_, _ = w.Write(b.Bytes()) // the client is gone
}
