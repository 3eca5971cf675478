package rpc

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
)

// Calls counts calls and the time they took. Its Observe is an [Observer].
type Calls struct {
	mu  sync.Mutex
	all map[call]*tally
}

type call struct {
	method string
	code   codes.Code
}

type tally struct {
	count   uint64
	seconds float64
}

// Observe counts one call.
func (c *Calls) Observe(method string, code codes.Code, took time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all == nil {
		c.all = map[call]*tally{}
	}
	t := c.all[call{method, code}]
	if t == nil {
		t = &tally{}
		c.all[call{method, code}] = t
	}
	t.count++
	t.seconds += took.Seconds()
}

// Metrics writes the counts in the Prometheus text format, version 0.0.4: PREFIX_calls_total and PREFIX_call_seconds_total by
// method and code. kind is what the calls are ("CRI").
func (c *Calls) Metrics(w io.Writer, prefix, kind string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	keys := slices.SortedFunc(maps.Keys(c.all), func(x, y call) int {
		return cmp.Or(cmp.Compare(x.method, y.method), cmp.Compare(x.code, y.code))
	})
	fmt.Fprintf(w, "# HELP %[1]s_calls_total %[2]s calls by method and gRPC code.\n# TYPE %[1]s_calls_total counter\n", prefix, kind)
	for _, k := range keys {
		fmt.Fprintf(w, "%s_calls_total{method=%q,code=%q} %d\n", prefix, k.method, k.code, c.all[k].count)
	}
	fmt.Fprintf(w, "# HELP %[1]s_call_seconds_total Time spent in %[2]s calls.\n# TYPE %[1]s_call_seconds_total counter\n", prefix, kind)
	for _, k := range keys {
		fmt.Fprintf(w, "%s_call_seconds_total{method=%q,code=%q} %g\n", prefix, k.method, k.code, c.all[k].seconds)
	}
}

// Stop ends a server when the calls under way are answered, at the latest after grace.
func Stop(g *grpc.Server, grace time.Duration) {
	late := time.AfterFunc(grace, g.Stop)
	defer late.Stop()
	g.GracefulStop()
}
