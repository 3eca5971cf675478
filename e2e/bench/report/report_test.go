package report

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestQuantile(t *testing.T) {
	for _, c := range []struct {
		s    Series
		q, w float64
	}{
		{Series{3}, 0.5, 3},
		{Series{3}, 0.95, 3},
		{Series{4, 1, 3, 2}, 0.5, 2.5},
		{Series{5, 1, 3}, 0.5, 3},
		{Series{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, 0.95, 10.5},
		{Series{2, 1}, 1, 2},
	} {
		if got := c.s.Quantile(c.q); got != c.w {
			t.Errorf("%v at %v: %v, want %v", c.s, c.q, got, c.w)
		}
	}
	if !math.IsNaN(Series(nil).P50()) {
		t.Error("no samples have no median")
	}
}

func TestRowsAreBerthByPeer(t *testing.T) {
	var r Report
	r.Add("a", "ms", 1.23456, 12.3456)
	r.Add("no peer", "ms", 1, 0)
	r.Add("no figure", "ms", math.NaN(), 1)
	path := filepath.Join(t.TempDir(), "new", "cri.json")
	if err := r.WriteJSON(path); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var rows []map[string]any
	if err := json.Unmarshal(b, &rows); err != nil {
		t.Fatal(err)
	}
	if len(rows) != 1 || len(rows[0]) != 5 || rows[0]["name"] != "a" || rows[0]["unit"] != "ms" || rows[0]["berth"] != 1.235 || rows[0]["peer"] != 12.35 || rows[0]["ratio"] != 0.1 {
		t.Fatalf("wrote %s", b)
	}
}

func TestPairedRatioIsOfPairs(t *testing.T) {
	var r Report
	r.AddPaired("slow for a while", "MiB/s", Series{100, 10, 90}, Series{100, 10, 100}) // the medians' ratio would be 0.9
	r.AddPaired("unequal", "MiB/s", Series{1, 2}, Series{1})
	r.AddPaired("stopped", "MiB/s", Series{1}, Series{0})
	if len(r.Rows) != 1 || r.Rows[0] != (Row{Name: "slow for a while", Unit: "MiB/s", Berth: 90, Peer: 100, Ratio: 1}) {
		t.Fatalf("rows: %+v", r.Rows)
	}
}

func TestBars(t *testing.T) {
	r := Report{Rows: []Row{{Name: "low", Ratio: 0.1}, {Name: "high", Ratio: 7.9}}}
	var out strings.Builder
	missed := r.PrintBars(&out, []Bar{{Name: "low", Limit: 0.1}, {Name: "high", Limit: 8, AtLeast: true}, {Name: "gone", Limit: 1}})
	if missed != 2 || strings.Count(out.String(), "✓") != 1 || !strings.Contains(out.String(), "not measured") {
		t.Fatalf("%d missed:\n%s", missed, out.String())
	}
}

func TestPictureIsXMLWithEveryRow(t *testing.T) {
	r := Report{Rows: []Row{
		{Name: "run", Unit: "ms", Berth: 4, Peer: 200, Ratio: 0.02},
		{Name: "floor", Unit: "ms", Berth: 4, Peer: 1.5, Ratio: 2.7},
		{Name: "same", Unit: "ms", Berth: 1, Peer: 1, Ratio: 1},
	}}
	svg := string(r.SVG("Pods & more", "sub", []Panel{
		{Title: "ms", Rows: []Line{{Label: "Run<>", Row: "run", Floor: "floor", Scale: 1, Unit: "ms"}, {Label: "Same", Row: "same", Scale: 1}, {Label: "Absent", Row: "none", Scale: 1}}},
		{Title: "nothing", Rows: []Line{{Label: "Empty", Row: "none", Scale: 1}}},
	}))
	for _, want := range []string{"Pods &amp; more", "Run&lt;&gt;", ">50×<", ">1.0×<", ">200 ms<"} {
		if !strings.Contains(svg, want) {
			t.Errorf("no %q in the picture", want)
		}
	}
	if strings.Contains(svg, "Absent") || strings.Contains(svg, "nothing") || strings.Contains(svg, "NaN") || strings.Contains(svg, "Inf") {
		t.Errorf("the picture shows what was not measured:\n%s", svg)
	}
	for d := xml.NewDecoder(strings.NewReader(svg)); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
}
