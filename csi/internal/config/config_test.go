package config_test

import (
	"strings"
	"testing"

	"github.com/berth-project/berth/csi/internal/config"
)

func TestExampleParsesToItself(t *testing.T) {
	text, err := config.Example().Text()
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

const pool = "[pools.a]\nbackend='loop'\npath='/x'\n"

func TestBadFilesAreNamed(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"rot = '/x'\n" + pool, `unknown key "rot", nearest is "root"`},
		{"[cluster]\nkubeconf = ''\n" + pool, `nearest is "cluster.kubeconfig"`},
		{pool + "overcomit = 2.0", `nearest is "pools.a.overcommit"`},
		{"", "pools: there is none"},
		{"root = 'x'\n" + pool, "root: \"x\" is not an absolute path"},
		{"driver = 'A b'\n" + pool, "driver: "},
		{"socket = '/" + strings.Repeat("x", 107) + "'\n" + pool, "socket: 108 bytes"},
		{"log_level = 'loud'\n" + pool, "log_level"},
		{pool + "size = '10G'", "pools.a.size: \"10G\" is no size"},
		{pool + "keep_free = '9999999Pi'", "pools.a.keep_free"},
		{pool + "overcommit = 0.5", "pools.a.overcommit: 0.5"},
		{"[pools.'../a']\nbackend='loop'\npath='/x'", `"../a" is no name`},
		{"[pools.a]\nbackend='zfs'\npath='/x'", "pools.a.backend: \"zfs\", want one of"},
		{"[pools.a]\nbackend='lvm'\npath='/x'\nvolume_group='g'", "pools.a.path"},
		{"[pools.a]\nbackend='lvm'", "pools.a.volume_group"},
		{"[pools.a]\nbackend='lvm'\nvolume_group='../g'", "pools.a.volume_group"},
		{"[pools.a]\nbackend='lvm'\nvolume_group='g'\nthin_pool='-t'", "pools.a.thin_pool"},
		{"[pools.a]\nbackend='lvm'\nvolume_group='g'\nprogram='lvm'", "pools.a.program"},
		{"[pools.a]\nbackend='lvm'\nvolume_group='g'\novercommit=2.0", "pools.a.overcommit"},
		{"[pools.a]\nbackend='static'\npath='/x'", "pools.a.devices"},
		{"[pools.a]\nbackend='static'\npath='/x'\ndevices=['sdb']", "pools.a.devices: \"sdb\""},
		{"[pools.a]\nbackend='static'\npath='/x'\ndevices=['/dev/sdb']\novercommit=2.0", "pools.a.overcommit"},
		{pool + "devices=['/dev/sdb']", "pools.a.devices"},
		{pool + "volume_group='g'", "pools.a.volume_group"},
		{"[pools.a]\nbackend='loop'\npath='/'", "pools.a.path"},
		{pool + "default=true\n[pools.b]\nbackend='loop'\npath='/y'\ndefault=true", "2 say default"},
		{pool + "[pools.b]\nbackend='btrfs'\npath='/x/'", "pools.b: /x/ is pool a's already"},
		{"root = 3", "line 1"},
	} {
		_, err := config.Parse([]byte(c.text))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("Parse(%q): %v, want %q in it", c.text, err, c.want)
		}
	}
}

func TestBytes(t *testing.T) {
	for text, want := range map[string]int64{"": 0, "7": 7, "1Ki": 1024, "3Gi": 3 << 30, "2Ti": 2 << 40} {
		if got, err := config.Bytes(text); err != nil || got != want {
			t.Errorf("Bytes(%q) = %d, %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"-1", "1.5Gi", "Gi", "1GB", "9223372036854775807Ki"} {
		if got, err := config.Bytes(text); err == nil {
			t.Errorf("Bytes(%q) = %d", text, got)
		}
	}
}
