package rpc_test

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/berth-project/berth/proto/rpc"
)

func TestMetrics(t *testing.T) {
	var c rpc.Calls
	c.Observe("/b", codes.OK, time.Second)
	c.Observe("/a", codes.NotFound, 0)
	c.Observe("/b", codes.OK, 500*time.Millisecond)
	var b strings.Builder
	c.Metrics(&b, "berth_x", "X")
	want := `# HELP berth_x_calls_total X calls by method and gRPC code.
# TYPE berth_x_calls_total counter
berth_x_calls_total{method="/a",code="NotFound"} 1
berth_x_calls_total{method="/b",code="OK"} 2
# HELP berth_x_call_seconds_total Time spent in X calls.
# TYPE berth_x_call_seconds_total counter
berth_x_call_seconds_total{method="/a",code="NotFound"} 0
berth_x_call_seconds_total{method="/b",code="OK"} 1.5
`
	if b.String() != want {
		t.Errorf("%s", b.String())
	}
}
