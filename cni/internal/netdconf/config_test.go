package netdconf_test

import (
	"strings"
	"testing"

	"github.com/berth-project/berth/cni/internal/netdconf"
)

func TestDefaultParsesToItself(t *testing.T) {
	text, err := netdconf.Default().Text()
	if err != nil {
		t.Fatal(err)
	}
	c, err := netdconf.Parse([]byte(text))
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	if again, err := c.Text(); err != nil || again != text || !strings.Contains(text, "# ") {
		t.Errorf("not stable: %v\n%s\n%s", err, text, again)
	}
}

func TestBadFilesAreNamed(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"nod: x", `line 1: nod: unknown key, nearest is "node"`},
		{"cni: {dirs: /x}", `cni.dirs: unknown key, nearest is "dir"`},
		{"state: x", `state: "x" is not an absolute path`},
		{"fabric: ''", "fabric: "},
		{"logLevel: loud", "logLevel"},
		{"cni: {file: ../x}", "must be a file's name"},
		{"state: /" + strings.Repeat("x", 107), "a Unix socket path holds 107"},
	} {
		if _, err := netdconf.Parse([]byte(c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", c.text, err, c.want)
		}
	}
	if _, err := netdconf.Parse([]byte("fabric: ''\nkubernetes: {enabled: true}")); err != nil {
		t.Errorf("Kubernetes needs no file: %v", err)
	}
}
