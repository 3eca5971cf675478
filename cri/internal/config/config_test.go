package config_test

import (
	"strings"
	"testing"

	"github.com/berth-project/berth/cri/internal/config"
)

func TestDefaultTextParsesToItself(t *testing.T) {
	text, err := config.Default().Text()
	if err != nil {
		t.Fatal(err)
	}
	c, err := config.Parse([]byte(text))
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	if again, err := c.Text(); err != nil || again != text {
		t.Errorf("not stable: %v\n%s\n%s", err, text, again)
	}
}

func TestBadFilesAreNamed(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"rot = '/x'", `unknown key "rot", nearest is "root"`},
		{"[image]\npined = []", `nearest is "image.pinned"`},
		{"root = 'x'", "root: \"x\" is not an absolute path"},
		{"log_level = 'loud'\nroot='y'", "log_level"},
		{"[shim]\npods_per_shim = 0", "pods_per_shim: 0"},
		{"[runtimes.runc]\nbinary='runc'", "runtimes.runc.binary"},
		{"root = 3", "line 1"},
		{"root = '", "line 1"},
	} {
		_, err := config.Parse([]byte(c.text))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("Parse(%q): %v, want %q in it", c.text, err, c.want)
		}
	}
}
