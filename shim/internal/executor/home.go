package executor

import (
	"os"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/internal/inroot"
)

// passwdLimit bounds what is read of a container's /etc/passwd.
const passwdLimit = 1 << 20

// setHome gives a process without HOME the home directory that /etc/passwd below root has for its uid, or "/", as
// runc does. A line that would put more than a path into the environment is ignored.
func setHome(p *specs.Process, root int) {
	for _, e := range p.Env {
		if v, ok := strings.CutPrefix(e, "HOME="); ok && v != "" {
			return
		}
	}
	fd, err := unix.FcntlInt(uintptr(root), unix.F_DUPFD_CLOEXEC, 3) //nolint:gosec // a descriptor
	home := "/"
	if err == nil {
		r := inroot.FromFile(os.NewFile(uintptr(fd), "root")) //nolint:gosec // a descriptor
		if b, err := r.ReadFile("/etc/passwd", passwdLimit); err == nil {
			home = homeOf(string(b), p.User.UID)
		}
		_ = r.Close()
	}
	env := make([]string, 0, len(p.Env)+1)
	for _, e := range p.Env {
		if e != "HOME=" {
			env = append(env, e)
		}
	}
	p.Env = append(env, "HOME="+home)
}

func homeOf(passwd string, uid uint32) string {
	for line := range strings.Lines(passwd) {
		f := strings.Split(strings.TrimRight(line, "\r\n"), ":")
		if len(f) < 7 {
			continue
		}
		n, err := strconv.ParseUint(f[2], 10, 32)
		if err == nil && uint32(n) == uid && strings.HasPrefix(f[5], "/") && !strings.ContainsAny(f[5], "\x00\n") {
			return f[5]
		}
	}
	return "/"
}

// openRoot opens the root directory of the process a pidfd is for.
func openRoot(pidfd int) (int, error) {
	b, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(pidfd))
	if err != nil {
		return -1, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "Pid:"); ok {
			return unix.Open("/proc/"+strings.TrimSpace(v)+"/root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		}
	}
	return -1, unix.ESRCH
}
