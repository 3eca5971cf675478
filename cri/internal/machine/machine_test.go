package machine

import "testing"

func TestParseRelease(t *testing.T) {
	for s, want := range map[string][2]int{"6.18.44": {6, 18}, "5.15-rc1": {5, 15}, "6.12.0-cloud-amd64": {6, 12}, "x": {0, 0}} {
		if got := parseRelease(s); got != want {
			t.Errorf("%s: %v, want %v", s, got, want)
		}
	}
}

func TestProbeHere(t *testing.T) {
	f, err := Probe()
	if err != nil {
		t.Fatal(err)
	}
	if f.BootID == "" || f.LastCap < 37 {
		t.Errorf("facts %+v", f)
	}
}
