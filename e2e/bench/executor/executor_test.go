package executor

import (
	"strings"
	"testing"

	"github.com/berth-project/berth/e2e/bench/report"
)

// TestRows: the steps are medians, the whole is the median of sums, which is not the sum of medians.
func TestRows(t *testing.T) {
	told, err := Parse("noise\n" + strings.ReplaceAll(`{"berth":{"create":[1,1,9],"start":[1,9,1],"delete":[9,1,1]},"peer":{"create":[10,20,30],"start":[1,1,1],"delete":[2,2,2]},
"berth_mounts":{"create":[1,1,9],"start":[2,2,2],"delete":[9,1,1]},"peer_mounts":{"create":[100],"start":[10],"delete":[10]}}`, "\n", "") + "\n")
	if err != nil {
		t.Fatal(err)
	}
	var r report.Report
	Rows(&r, "runc", told)
	for name, want := range map[string][2]float64{
		"executor_create_vs_runc": {1, 20}, "executor_start_vs_runc": {1, 1}, "executor_delete_vs_runc": {1, 2}, "executor_vs_runc": {11, 23},
		"executor_vs_runc_5000_mounts": {12, 120}, "executor_5000_mounts": {12, 11},
	} {
		if row, ok := r.Find(name); !ok || row.Berth != want[0] || row.Peer != want[1] {
			t.Errorf("%s: %+v, want %v", name, row, want)
		}
	}
	var out strings.Builder
	if missed := r.PrintBars(&out, Bars()); missed != 2 { // 11/23 is more than an eighth, and crun was not measured
		t.Errorf("%d bars missed:\n%s", missed, out.String())
	}
}

func TestParseRefuses(t *testing.T) {
	for _, bad := range []string{"", "x", "{}", `{"berth":{"create":[1],"start":[1],"delete":[1]}}`, `{"berth":{"create":[1],"start":[1],"delete":[]},"peer":{"create":[1],"start":[1],"delete":[1]}}`} {
		if _, err := Parse(bad); err == nil {
			t.Errorf("%q passed", bad)
		}
	}
}
