package csisanity

import (
	"context"
	"os"
	"slices"
	"testing"
	"time"
)

// TestSuite is the whole of csi-sanity on the two backends that most nodes will have; `make conformance-csi` has them all.
func TestSuite(t *testing.T) {
	bin, tools := os.Getenv("BERTH_BIN"), os.Getenv("BERTH_TOOLS")
	if bin == "" || tools == "" {
		t.Fatal("BERTH_BIN and BERTH_TOOLS say where berth-csi and csi-sanity are: make test sets them")
	}
	tried := 0
	for _, b := range Backends() {
		if !slices.Contains([]string{"loop on ext4, volumes ext4", "btrfs"}, b.Name) {
			continue
		}
		tried++
		t.Run(b.Name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
			defer cancel()
			r, err := Run(ctx, b, bin, tools, t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			for _, spec := range r.Failed {
				t.Errorf("failed: %s", spec)
			}
			if r.Passed < 85 {
				t.Errorf("%d specs passed, %d were skipped", r.Passed, r.Skipped)
			}
			t.Logf("%d passed, %d cannot pass anywhere, %d skipped", r.Passed, len(r.Excused), r.Skipped)
		})
	}
	if tried != 2 {
		t.Errorf("%d of the two backends are in the table", tried)
	}
}

func TestParse(t *testing.T) {
	r, err := parse([]byte(`[{"SpecReports":[
		{"ContainerHierarchyTexts":["A"],"LeafNodeText":"works","State":"passed"},
		{"ContainerHierarchyTexts":["A"],"LeafNodeText":"breaks","State":"failed"},
		{"ContainerHierarchyTexts":["A"],"LeafNodeText":"is not there","State":"skipped"},
		{"ContainerHierarchyTexts":["A"],"LeafNodeText":"should succeed when creating a snapshot with accessibility requirements","State":"failed"},
		{"ContainerHierarchyTexts":null,"LeafNodeText":"","State":"passed"}]}]`))
	if err != nil || r.Passed != 1 || r.Skipped != 1 || len(r.Failed) != 1 || r.Failed[0] != "A breaks" || len(r.Excused) != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := parse([]byte(`[]`)); err == nil {
		t.Error("a run without a spec is a success")
	}
}
