// Package apparmor knows which AppArmor profiles the kernel has, and gives it the one that containers get for which the pod
// names none. It is used only where AppArmor is active, and imports no other package of the daemon.
package apparmor

import (
	"bytes"
	"context"
	_ "embed" // the profile
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/berth-project/berth/proto/errs"
)

// Default is the name of the profile of containers that name none.
const Default = "berth-default"

//go:embed default.profile
var profile []byte

const (
	// loadedProfiles lists the kernel's profiles, a line each: "name (mode)" (securityfs, apparmorfs).
	loadedProfiles = "/sys/kernel/security/apparmor/profiles"
	// parseLimit bounds the run of apparmor_parser, in which a profile is compiled.
	parseLimit = 20 * time.Second
)

// parsers are where apparmor_parser may be; no PATH decides what runs with the daemon's rights.
var parsers = []string{"/usr/sbin/apparmor_parser", "/sbin/apparmor_parser", "/usr/bin/apparmor_parser", "/bin/apparmor_parser"}

// Loaded refuses a profile that the kernel does not have. Where securityfs is not mounted nobody can know, and the start of
// the container tells.
func Loaded(name string) error {
	b, err := os.ReadFile(loadedProfiles)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !listed(string(b), name) {
		return errs.FailedPrecondition.Errorf("apparmor profile %q is not loaded: load it on this node (apparmor_parser -r FILE)", name)
	}
	return nil
}

func listed(profiles, name string) bool {
	for line := range strings.Lines(profiles) {
		if at := strings.LastIndex(line, " ("); at >= 0 && line[:at] == name {
			return true
		}
	}
	return false
}

// Load gives the kernel the default profile, in place of an earlier version of it, by apparmor_parser. A node whose
// administrator has loaded one of that name by other means needs no parser.
func Load(ctx context.Context) error {
	for _, parser := range parsers {
		if _, err := os.Stat(parser); err != nil {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, parseLimit)
		defer cancel()
		cmd := exec.CommandContext(ctx, parser, "--replace", "--skip-cache") //nolint:gosec // a fixed path
		cmd.Env, cmd.Stdin = []string{}, bytes.NewReader(profile)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", parser, err, bytes.TrimSpace(out))
		}
		return nil
	}
	b, err := os.ReadFile(loadedProfiles)
	if err == nil && listed(string(b), Default) {
		return nil
	}
	return errs.FailedPrecondition.Errorf("no apparmor_parser (Debian: package apparmor) to load it, and it is not loaded already")
}
