package apparmor

import (
	"bytes"
	"os"
	"os/exec"
	"testing"
)

func TestListed(t *testing.T) {
	const profiles = "berth-default (enforce)\n/usr/bin/man (complain)\nweb (one) (enforce)\n"
	for name, want := range map[string]bool{"berth-default": true, "/usr/bin/man": true, "web (one)": true, "web": false, "berth": false, "": false} {
		if listed(profiles, name) != want {
			t.Errorf("%q: %v", name, !want)
		}
	}
}

// TestProfileCompiles needs no kernel with AppArmor, only the compiler.
func TestProfileCompiles(t *testing.T) {
	if _, err := os.Stat(parsers[0]); err != nil {
		t.Skip("apparmor_parser is not installed; the profile is compiled and tried in e2e/lsm")
	}
	cmd := exec.Command(parsers[0], "--skip-kernel-load", "--skip-cache", "--ofile=/dev/null")
	cmd.Stdin = bytes.NewReader(profile)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
