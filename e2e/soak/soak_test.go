package soak

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth/e2e/bench/rig"
)

// course makes an hour's samples of every measure with value as a function of the hour and of the daemon's life.
func course(value func(hours float64, life int32) float64) (samples []Sample) {
	for at := 10 * time.Second; at < time.Hour; at += 10 * time.Second {
		s := Sample{At: at, Life: int32(at / (10 * time.Minute)), Values: map[string]float64{}}
		for _, m := range measures() {
			s.Values[m] = value(at.Hours(), s.Life)
		}
		samples = append(samples, s)
	}
	return samples
}

// TestWhatGrows: a leak of one descriptor in 5,000 pods is seen, warming up is not, and a sawtooth does not hide a leak.
func TestWhatGrows(t *testing.T) {
	for _, c := range []struct {
		what  string
		value func(hours float64, life int32) float64
		grows []string
		all   bool
	}{
		{"nothing", func(float64, int32) float64 { return 40 }, nil, false},
		{"the first third only", func(h float64, _ int32) float64 { return 40 + 9000*min(h, 0.3) }, nil, false},
		{"four in an hour", func(h float64, _ int32) float64 { return 40 + 4*h }, []string{"daemon_fds_slope", "mounts_slope", "netns_slope"}, false},
		{
			"each daemon alone", func(h float64, life int32) float64 { return 40 + 90000*(h-float64(life)/6) },
			[]string{"daemon_rss_slope_within_a_life", "daemon_fds_slope_within_a_life"},
			false,
		},
		{"everything", func(h float64, _ int32) float64 { return 40 + 1e6*h }, nil, true},
	} {
		rows, grows := judge(course(c.value), time.Hour)
		if len(rows) != len(bounds())+len(seen()) {
			t.Errorf("%s: %d rows, want %d", c.what, len(rows), len(bounds())+len(seen()))
		}
		if c.all && len(grows) != len(bounds()) || !c.all && c.grows == nil && len(grows) != 0 {
			t.Errorf("%s: it says that %v grow", c.what, grows)
		}
		for _, g := range c.grows {
			if !strings.Contains(strings.Join(grows, " ")+" ", g+" ") {
				t.Errorf("%s: %s is not seen to grow, %v are", c.what, g, grows)
			}
		}
	}
	if _, grows := judge(nil, time.Hour); len(grows) != len(bounds())+len(seen()) {
		t.Errorf("without samples %d measures fail", len(grows))
	}
}

// TestSawtooth: what every life of a daemon takes in its first minutes is no growth from life to life, and does not hide one.
func TestSawtooth(t *testing.T) {
	for leak, flat := range map[float64]bool{0: true, 1500: false} {
		rows, _ := judge(course(func(h float64, life int32) float64 {
			return 28000 + 3000*min(20*(h-float64(life)/6), 1) + leak*float64(life)/6
		}), time.Hour)
		for _, r := range rows {
			if r.Name == "daemon_rss_slope" && (*r.Flat != flat || *r.Low > leak+1 || *r.High < leak-1) {
				t.Errorf("%v KiB an hour from life to life: %v to %v, flat: %v", leak, *r.Low, *r.High, *r.Flat)
			}
		}
	}
}

// TestShorterIsStricterByTheHour: a soak of six minutes may grow by as much as one of an hour.
func TestShorterIsStricterByTheHour(t *testing.T) {
	samples := course(func(h float64, _ int32) float64 { return 40 + 15*h })
	if _, grows := judge(samples[:36], 6*time.Minute); strings.Contains(strings.Join(grows, " ")+" ", "daemon_fds_slope ") {
		t.Errorf("1.5 descriptors in six minutes: %v", grows)
	}
}

func TestListenerSeesWhatIsMissing(t *testing.T) {
	var l listener
	for _, part := range []string{"line 0\nli", "ne 1\nline 2\n", "line 4\n"} {
		if _, err := l.Write([]byte(part)); err != nil {
			t.Fatal(err)
		}
	}
	if l.count != 4 || !strings.Contains(l.wrong, `"line 4" where "line 3"`) {
		t.Errorf("%+v", l)
	}
}

func TestPayload(t *testing.T) {
	if text, whole := payload("2026-01-01T00:00:00Z stdout F line 3 x\n"); text != "line 3 x" || !whole {
		t.Error(text, whole)
	}
	for _, half := range []string{"", "2026-01-01T00:00:00Z stdout F line", "2026-01-01T00:00:00Z stdout P line 3\n", "2026 stdout\n"} {
		if _, whole := payload(half); whole {
			t.Errorf("%q is no whole line", half)
		}
	}
}

// TestLook measures this very process and a directory with a file of two names.
func TestLook(t *testing.T) {
	v := map[string]float64{}
	if err := process(v, "x", os.Getpid()); err != nil {
		t.Fatal(err)
	}
	pss, err := rig.PSS([]int{os.Getpid()})
	if err != nil || v["x_rss"] < float64(pss>>11) || v["x_threads"] < 1 || v["x_fds"] < 3 || v["x_pss"] == 0 {
		t.Errorf("%v, PSS %d (%v)", v, pss>>10, err)
	}
	if err := process(map[string]float64{}, "x", 1<<22); err == nil { // no such process can be
		t.Error("a process that is not there was measured")
	}
	dir := t.TempDir()
	one := filepath.Join(dir, "one")
	if err := errors.Join(os.WriteFile(one, make([]byte, 9000), 0o600), os.Link(one, filepath.Join(dir, "two"))); err != nil {
		t.Fatal(err)
	}
	if err := files(v, "d", dir, filepath.Join(dir, "none")); err != nil || v["d_inodes"] != 2 || v["d_bytes"] < 8 || v["d_bytes"] > 40 {
		t.Errorf("%v, %v", v, err)
	}
	nets, mounts, err := spaces([]int{os.Getpid()})
	if err != nil || nets != 1 || mounts < 2 {
		t.Errorf("%d network namespaces, %d mounts, %v", nets, mounts, err)
	}
}

func TestPictureShowsEveryMeasure(t *testing.T) {
	svg := string(picture(course(func(h float64, life int32) float64 { return 40 + h + float64(life) }), time.Hour))
	for _, m := range measures() {
		if !strings.Contains(svg, ">"+m+"<") {
			t.Errorf("no chart of %s", m)
		}
	}
	if strings.Count(svg, `class="u"`) != 5*len(measures()) || strings.Contains(svg, "NaN") {
		t.Error("the upgrades are not all there, or something is no number")
	}
	for d := xml.NewDecoder(strings.NewReader(svg)); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func TestNumber(t *testing.T) {
	if got := number("a\n# NextGC = 12345\n# NumGC = 3\n", "# NextGC = "); got != 12345 {
		t.Error(got)
	}
	if got := number("# NextGC = x\n", "# NextGC = "); got != 0 {
		t.Error(got)
	}
}

// TestFloor: a minute's peak does not count, what stays does, and one daemon's least is not another's.
func TestFloor(t *testing.T) {
	var samples []Sample
	for i := range 24 { // four minutes, the last one of another daemon
		v := 10.0
		if i%6 == 3 {
			v = 500
		}
		if i >= 12 {
			v++ // it stays
		}
		samples = append(samples, Sample{At: time.Duration(i) * 10 * time.Second, Life: int32(i / 18), Values: map[string]float64{"daemon_fds": v}})
	}
	least := floor(samples, time.Hour)
	var got []float64
	for _, s := range least {
		got = append(got, s.Values["daemon_fds"])
	}
	if !slices.Equal(got, []float64{10, 10, 11, 11}) || least[3].Life != 1 {
		t.Errorf("%v", got)
	}
	if samples[3].Values["daemon_fds"] != 500 {
		t.Error("the samples themselves were changed")
	}
}
