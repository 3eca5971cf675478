// Package machine finds out, once at start, what this kernel and this process can do, and says in words what is
// missing and what follows from it. It changes nothing.
package machine

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/proto/errs"
)

// Facts are what was found.
type Facts struct {
	BootID            string
	Kernel            [2]int // 6, 18
	LastCap           int
	AppArmor, SELinux bool
	IDMapped          bool // idmapped mounts on tmpfs too (Linux 6.3)
	RecursiveReadOnly bool // mount_setattr (Linux 5.12)
	ExitInPidfd       bool // PIDFD_INFO_EXIT (Linux 6.15)
	// Missing says what this machine lacks and what degrades for it, one line each.
	Missing []string
}

// Probe looks. An error is a machine on which containers cannot be run at all.
func Probe() (Facts, error) {
	var f Facts
	if os.Geteuid() != 0 {
		return f, errs.PermissionDenied.Errorf("berth-cri makes namespaces, mounts and cgroups: run it as root")
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return f, err
	}
	f.Kernel = parseRelease(unix.ByteSliceToString(u.Release[:]))
	if !f.atLeast(5, 14) {
		return f, errs.FailedPrecondition.Errorf("Linux %d.%d: 5.14 or newer is needed (cgroup.kill, the mount API, pidfds)", f.Kernel[0], f.Kernel[1])
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return f, fmt.Errorf("boot id: %w", err)
	}
	f.BootID = strings.TrimSpace(string(boot))
	last, err := os.ReadFile("/proc/sys/kernel/cap_last_cap")
	if err != nil {
		return f, fmt.Errorf("last capability: %w", err)
	}
	if f.LastCap, err = strconv.Atoi(strings.TrimSpace(string(last))); err != nil {
		return f, err
	}
	on, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	f.AppArmor = err == nil && strings.HasPrefix(string(on), "Y")
	_, err = os.Stat("/sys/fs/selinux/enforce")
	f.SELinux = err == nil
	f.IDMapped, f.RecursiveReadOnly, f.ExitInPidfd = f.atLeast(6, 3), true, f.atLeast(6, 15)
	f.missing()
	return f, nil
}

func (f *Facts) atLeast(major, minor int) bool {
	return f.Kernel[0] > major || f.Kernel[0] == major && f.Kernel[1] >= minor
}

func (f *Facts) missing() {
	lack := func(have bool, what, effect string) {
		if !have {
			f.Missing = append(f.Missing, what+": "+effect)
		}
	}
	lack(f.IDMapped, "idmapped tmpfs (Linux 6.3)", "pods with hostUsers: false are refused")
	lack(f.ExitInPidfd, "exit codes in pidfds (Linux 6.15)", "a container whose supervisor died after a restart of the daemon has an unknown exit code")
	lack(hasCap(unix.CAP_SYS_RESOURCE), "CAP_SYS_RESOURCE", "oom_score_adj cannot be lowered and hard limits cannot be raised; containers get the nearest value that is allowed")
	lack(!f.SELinux, "SELinux labels", "SELinux is active, but containers run with the label of their supervisor; pods that ask for one are refused")
	lack(f.AppArmor, "AppArmor", "pods that ask for a localhost AppArmor profile are refused")
}

// hasCap looks at this process's effective set.
func hasCap(c int) bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return errors.Is(err, unix.ENOSYS)
	}
	return data[c/32].Effective&(1<<(c%32)) != 0
}

// parseRelease reads "6.18.44-amd64" as {6, 18}.
func parseRelease(s string) [2]int {
	var v [2]int
	for i, part := range strings.SplitN(s, ".", 3) {
		if i == 2 {
			break
		}
		if end := strings.IndexFunc(part, func(r rune) bool { return r < '0' || r > '9' }); end >= 0 {
			part = part[:end]
		}
		n, err := strconv.Atoi(part)
		if err != nil {
			break
		}
		v[i] = n
	}
	return v
}
