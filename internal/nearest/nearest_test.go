package nearest_test

import (
	"testing"

	"github.com/berth-project/berth/internal/nearest"
)

func TestTo(t *testing.T) {
	known := []string{"root", "socket", "log_level"}
	for name, want := range map[string]string{"rot": "root", "sockt": "socket", "loglevel": "log_level", "": "root"} {
		if got := nearest.To(name, known); got != want {
			t.Errorf("To(%q) = %q, want %q", name, got, want)
		}
	}
	if got := nearest.To("x", nil); got != "" {
		t.Errorf("nothing is known, got %q", got)
	}
}
