package rig

import (
	"os"
	"testing"
)

func TestPSS(t *testing.T) {
	n, err := parsePSS([]byte("55d0 rollup\nRss:     100 kB\nPss:      40 kB\nPss_Dirty: 3 kB\n"))
	if err != nil || n != 40<<10 {
		t.Fatal(n, err)
	}
	if _, err := parsePSS([]byte("Rss: 1 kB\n")); err == nil {
		t.Error("no Pss passed")
	}
	own, err := PSS([]int{os.Getpid(), 1 << 22}) // the second one cannot exist
	if err != nil || own < 1<<20 {
		t.Fatal(own, err)
	}
}

func TestPressure(t *testing.T) {
	const psi = "some avg10=12.50 avg60=1.00 avg300=0.00 total=9\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
	if got := someAvg10(psi); got != 12.5 {
		t.Fatal(got)
	}
	if got, err := someTotal(psi); got != 9 || err != nil {
		t.Fatal(got, err)
	}
	if got, err := someTotal(""); err == nil {
		t.Fatalf("no pressure is %d", got)
	}
}
