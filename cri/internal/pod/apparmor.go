package pod

import (
	"errors"
	"os"
	"strings"

	"github.com/berth-project/berth/proto/errs"
)

// loadedProfiles lists AppArmor's profiles, a line each: "name (mode)" (securityfs, apparmorfs).
const loadedProfiles = "/sys/kernel/security/apparmor/profiles"

// profileLoaded refuses an AppArmor profile that the kernel does not have. Where securityfs is not mounted nobody can
// know, and the start of the container tells.
func profileLoaded(name string) error {
	b, err := os.ReadFile(loadedProfiles)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		if at := strings.LastIndex(line, " ("); at >= 0 && line[:at] == name {
			return nil
		}
	}
	return errs.FailedPrecondition.Errorf("apparmor profile %q is not loaded: load it on this node (apparmor_parser -r FILE)", name)
}
