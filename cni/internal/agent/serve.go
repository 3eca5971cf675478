package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"time"

	"github.com/berth-project/berth/cni/internal/resident"
)

// listen makes the sockets, for root alone: ours, and that for runtimes, which is nil where there is to be none. Those that
// are left of an earlier agent are removed: the lock is ours.
func (a *Agent) listen() (l net.Listener, cni *resident.Server, err error) {
	if err := resident.Able(); err != nil && a.conf.CNI.Resident {
		a.log.Warn("runtimes execute the plugin: this process cannot enter pods' network namespaces", "error", err)
		a.conf.CNI.Resident = false
	}
	if path := a.conf.CNISocket(); path != "" {
		if cni, err = resident.Listen(path, a.log); err != nil {
			return nil, nil, err
		}
	}
	path := a.conf.Socket()
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, nil, err
	}
	if l, err = net.Listen("unix", path); err != nil {
		return nil, nil, err
	}
	return l, cni, os.Chmod(path, 0o600)
}

// serve answers on the socket: /status and /trace for people and programs, /metrics for Prometheus.
func (a *Agent) serve(ctx context.Context, l net.Listener) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("format") == "json" {
			w.Header().Set("Content-Type", "application/json")
			a.answer(json.NewEncoder(w).Encode(a.Status()))
			return
		}
		a.print(w, a.Status().String())
	})
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		a.print(w, a.Metrics())
	})
	mux.HandleFunc("GET /trace", func(w http.ResponseWriter, r *http.Request) {
		from, err1 := netip.ParseAddr(r.URL.Query().Get("from"))
		to, err2 := netip.ParseAddr(r.URL.Query().Get("to"))
		if err := errors.Join(err1, err2); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		text, err := a.Trace(from, to)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		a.print(w, text)
	})
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	err := s.Close()
	if served := <-done; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}

func (a *Agent) print(w io.Writer, text string) {
	_, err := io.WriteString(w, text)
	a.answer(err)
}

// answer notes that a client did not wait for its answer.
func (a *Agent) answer(err error) {
	if err != nil {
		a.log.Debug("answering on the socket", "error", err)
	}
}

// Ask sends a request to a running agent's socket and returns what it says.
func Ask(ctx context.Context, socket, path string, query url.Values) (string, error) {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}
	u := url.URL{Scheme: "http", Host: "netd", Path: path, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", fmt.Errorf("is berth-netd running? %w", err)
	}
	b, err := io.ReadAll(resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s", b)
	}
	return string(b), nil
}
