package critest_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/berth-project/berth/e2e/critest"
	"github.com/berth-project/berth/e2e/harness"
	"github.com/berth-project/berth/e2e/ocispecs"
)

// TestSuite is the whole suite over SPDY, the transport of every kubelet: about a minute. `make conformance-cri`
// adds WebSocket and the peer.
func TestSuite(t *testing.T) {
	bin, tools := os.Getenv("BERTH_BIN"), os.Getenv("BERTH_TOOLS")
	if bin == "" || tools == "" {
		t.Fatal("BERTH_BIN and BERTH_TOOLS must name the programs: use `make test-e2e`")
	}
	lab := harness.NewLab("critest", bin, tools)
	lab.Pods = "10.93.0.0/16"
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	if err := harness.Stop(ctx, lab); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := harness.Stop(context.Background(), lab); err != nil {
			t.Error(err)
		}
	})
	if _, err := lab.StartRegistry(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := lab.StartCRI(ctx, harness.Options{}); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if keep := os.Getenv("BERTH_KEEP"); keep != "" {
		dir = keep
	}
	made := ocispecs.Start(filepath.Join(lab.Dir, "berth"))
	r, err := critest.Run(ctx, filepath.Join(tools, "critest"), lab.Socket(), dir, critest.SPDY, "")
	specs, serr := ocispecs.Check(made)
	if err != nil {
		t.Fatal(err)
	}
	if serr != nil {
		t.Error(serr)
	}
	t.Logf("%d distinct OCI specs, all compared with runc in shim/test", specs)
	t.Logf("%d passed, %d failed, %d skipped", r.Count("passed"), r.Count("failed"), r.Count("skipped"))
	for _, why := range critest.Verdict(r, nil) {
		t.Error(why)
	}
	if t.Failed() {
		b, err := os.ReadFile(filepath.Join(dir, "critest-SPDY.log"))
		t.Logf("%s\n%v", b, err)
	}
}
