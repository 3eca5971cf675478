package bgpd

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Confine gives up what is left to give up, and fails as root, which the agent should have seen to. No later exec gains anything (no_new_privs); no other process of this user
// reads the memory, in which passwords are (dumpable off), and no core file has them.
func Confine() error {
	if os.Geteuid() == 0 || os.Getuid() == 0 {
		return errors.New("will not run as root: berth-netd starts this program as another user")
	}
	if _, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); errno != 0 {
		return fmt.Errorf("no_new_privs: %w", errno)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("dumpable off: %w", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("no core files: %w", err)
	}
	return nil
}
