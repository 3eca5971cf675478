package stricttoml_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-project/berth/internal/stricttoml"
)

type pool struct {
	Backend string `toml:"backend"`
	Path    string `toml:"path,omitempty"`
}

type config struct {
	Root  string `toml:"root"`
	Cache struct {
		Size int `toml:"size"`
	} `toml:"cache"`
	Pools  map[string]pool `toml:"pools"`
	List   []pool          `toml:"list"`
	Hidden string          `toml:"-"`
}

func TestDecode(t *testing.T) {
	for text, says := range map[string]string{
		"root = '/x'\n[pools.a]\npath = '/p'\n[[list]]\nbackend = 'b'": "",
		"rot = '/x'":                       `line 1: unknown key "rot", nearest is "root"`,
		"\n[cache]\nsise = 1":              `line 3: unknown key "cache.sise", nearest is "cache.size"`,
		"[pools.mine]\npaht = 'x'":         `line 2: unknown key "pools.mine.paht", nearest is "pools.mine.path"`,
		"[[list]]\nbakend = 'x'":           `line 2: unknown key "list.bakend", nearest is "list.backend"`,
		"hidden = 'x'\nroo = 'y'":          `line 2: unknown key "roo"`,
		"root = ":                          "line 1, column ",
		"[cache]\nsize = 'many'":           "line 2, column ",
		"root = '/x'\nroot = '/y'":         "root",
		"root = '/x'\n[pools]\na = 'text'": "line 3",
	} {
		c := config{Root: "default"}
		err := stricttoml.Decode([]byte(text), &c)
		if says == "" && err != nil || says != "" && (err == nil || !strings.Contains(err.Error(), says)) {
			t.Errorf("%q: %v, want %q", text, err, says)
		}
	}
	c := config{Root: "default"}
	if err := stricttoml.Decode([]byte("[cache]\nsize = 3"), &c); err != nil || c.Root != "default" || c.Cache.Size != 3 {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestLoad(t *testing.T) {
	parse := func(b []byte) (c config, err error) { return c, stricttoml.Decode(b, &c) }
	path := filepath.Join(t.TempDir(), "c.toml")
	if _, err := stricttoml.Load(path, parse); err == nil || strings.Count(err.Error(), path) != 1 {
		t.Errorf("a missing file: %v", err)
	}
	if err := os.WriteFile(path, []byte("rot = 1"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := stricttoml.Load(path, parse); err == nil || !strings.HasPrefix(err.Error(), "configuration "+path+": line 1") {
		t.Errorf("an unknown key: %v", err)
	}
}
