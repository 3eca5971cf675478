// Package unpacker turns blobs into layer directories in confined children of this program, one for each layer. What
// a registry sends is hashed here and then only passed on: decompressors and the tar reader run in the child, which
//
//   - has no name space to leave: an empty read-only root with nothing but its own program, no network, a pid, ipc
//     and host name space of its own; the layer's directory is a descriptor of a detached mount (nodev, nosuid,
//     noexec), so that ".." ends there;
//   - may do what unpacking takes and no more: six capabilities (Capabilities) of which none mounts, traces, kills or
//     opens by handle, no_new_privs, and a list of system calls without execve, socket, clone of processes, mount;
//   - is bounded: data memory, open files, CPU time, file size by rlimits; bytes, entries and names by layers.Limits;
//     time without progress, and in all, by this side;
//   - dies with this process, whatever way it ends.
//
// Whatever the child says is checked as a stranger's word (layers.Result.Check, Result.Seal). What it cannot be
// stopped from is to fill its own layer's directory wrongly: package layers' own tests are for that. A child that dies, hangs or
// lies costs the pull that it worked for. Where the kernel lacks a part of this, Unpack refuses.
//
// The package must not import registry or image.
//
//	              ┌────────── this process ──────────┐          ┌──────── child ────────┐
//	body ────────▶ sha256 ────────── shared memory ──────────▶ inflate │ sha256 │ tar ─▶ directory (descriptor)
//	Result ◀────── check, opaque marks ◀ pipe ───────────────── result
//
// The kernel: detached mounts and their attributes are Linux 5.12, openat2 5.6.
package unpacker

import (
	"cmp"
	"time"

	"golang.org/x/sys/unix"
)

// Capabilities is all that a child may have: owners and modes of what it makes, device nodes (overlayfs's whiteouts
// and those that images bring), file capabilities. The mark of an opaque directory, which would take CAP_SYS_ADMIN, is
// set by this side from the child's list.
func Capabilities() []uintptr {
	return []uintptr{
		unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER, unix.CAP_FSETID, unix.CAP_MKNOD, unix.CAP_SETFCAP,
	}
}

// Bounds of one child.
const (
	// memory is RLIMIT_DATA, in bytes: a zstd window of 128 MiB, buffers, 64 MiB of names, and what the collector
	// has not come to yet.
	memory = 640 << 20
	// memoryGoal is the collector's (GOMEMLIMIT).
	memoryGoal = "256MiB"
	// files is RLIMIT_NOFILE: removal holds one for each level, of which there are at most 1024.
	files = 1100
	// oomScore is oom_score_adj.
	oomScore = "900"
	// cpuTime is RLIMIT_CPU, in seconds.
	cpuTime = 3600
)

// Config says what children are and how long they may take. The zero value is for production.
type Config struct {
	// Program is the executable whose Main children run, statically linked; default is this process's own.
	Program string
	// Stall is how long a child may neither read nor use the processor while there is something to do; default 2 min.
	Stall time.Duration
	// Patience is how long a child may take in all, the time that the blob's source takes not counted; default 1 h,
	// which is 64 GiB at 20 MB/s.
	Patience time.Duration
	// Observe, if not nil, is told the process id of each child that was started.
	Observe func(pid int)
}

func (c Config) withDefaults() Config {
	c.Program = cmp.Or(c.Program, "/proc/self/exe")
	c.Stall = cmp.Or(c.Stall, 2*time.Minute)
	c.Patience = cmp.Or(c.Patience, time.Hour)
	return c
}
