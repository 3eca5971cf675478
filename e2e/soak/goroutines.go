package soak

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"
)

// goroutines asks a Go program's debug socket (net/http/pprof) how many it has; the one that answers is among them.
func goroutines(socket string) (float64, error) {
	c := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}}}
	r, err := c.Get("http://berth/debug/pprof/goroutine?debug=1")
	if err != nil {
		return 0, err
	}
	var n float64
	_, err = fmt.Fscanf(r.Body, "goroutine profile: total %f", &n)
	return n, errors.Join(err, r.Body.Close())
}
