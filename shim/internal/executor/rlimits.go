package executor

import (
	"encoding/binary"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/proto/errs"
	"github.com/berth-project/berth/shim/internal/plan"
)

func rlimitNames() map[string]int {
	return map[string]int{
		"RLIMIT_CPU": 0, "RLIMIT_FSIZE": 1, "RLIMIT_DATA": 2, "RLIMIT_STACK": 3, "RLIMIT_CORE": 4, "RLIMIT_RSS": 5,
		"RLIMIT_NPROC": 6, "RLIMIT_NOFILE": 7, "RLIMIT_MEMLOCK": 8, "RLIMIT_AS": 9, "RLIMIT_LOCKS": 10,
		"RLIMIT_SIGPENDING": 11, "RLIMIT_MSGQUEUE": 12, "RLIMIT_NICE": 13, "RLIMIT_RTPRIO": 14, "RLIMIT_RTTIME": 15,
	}
}

func rlimitNumbers() []int {
	var all []int
	for _, n := range rlimitNames() {
		all = append(all, n)
	}
	return all
}

// defaultNofile is the soft limit of open files for a process whose spec has none: what systemd gives, and not
// what the Go runtime has raised it to in this process.
const defaultNofile = 1024

func validateRlimits(limits []specs.POSIXRlimit) error {
	names, seen := rlimitNames(), map[string]bool{}
	for _, l := range limits {
		if _, ok := names[l.Type]; !ok || seen[l.Type] || l.Soft > l.Hard {
			return errs.InvalidArgument.Errorf("rlimit %s (soft %d, hard %d): unknown, given twice, or soft above hard", l.Type, l.Soft, l.Hard)
		}
		seen[l.Type] = true
	}
	return nil
}

func prlimit(what string, res int, soft, hard uint64) plan.Step {
	b := binary.LittleEndian.AppendUint64(nil, soft)
	b = binary.LittleEndian.AppendUint64(b, hard)
	return plan.Call(what, unix.SYS_PRLIMIT64, plan.I(0), plan.I(res), plan.B(b), plan.I(0))
}

// raiseRlimits raises hard limits while the process has the capability of the host's root, if it has it.
func (c *compiler) raiseRlimits(limits []specs.POSIXRlimit) {
	for _, l := range limits {
		res := rlimitNames()[l.Type]
		if l.Hard > c.host.hard[res] {
			c.Add(prlimit("raise "+l.Type, res, c.host.hard[res], l.Hard).Noting(unix.EPERM))
		}
	}
}

// setRlimits sets the limits exactly; one that could not be raised above what the shim has is set to that.
func (c *compiler) setRlimits(limits []specs.POSIXRlimit) {
	nofile := false
	for _, l := range limits {
		res := rlimitNames()[l.Type]
		nofile = nofile || strings.HasSuffix(l.Type, "NOFILE")
		exact := prlimit("set "+l.Type, res, l.Soft, l.Hard)
		have := c.host.hard[res]
		if l.Hard <= have {
			c.Add(exact)
			continue
		}
		c.Unless(exact.Passing(unix.EPERM), prlimit("set "+l.Type, res, min(l.Soft, have), have))
	}
	if !nofile {
		hard := c.host.hard[unix.RLIMIT_NOFILE]
		c.Add(prlimit("set RLIMIT_NOFILE", unix.RLIMIT_NOFILE, min(defaultNofile, hard), hard))
	}
}
