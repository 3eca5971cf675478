package unpacker

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/cri/internal/layers"
	"github.com/berth-project/berth/proto/errs"
)

// Command is the first argument of a child.
const Command = "unpack"

// Descriptors of a child beside the three that every process has: lengths of slots come on 0, the answer goes to 1.
const (
	fdLayer   = 3 // the directory to fill
	fdMemory  = 4 // of the ring
	fdCredits = 5
)

// Main is the child: it reads a blob, unpacks it, says what came of it, and returns the exit code. args are what follows Command: the diffID and three limits.
// Run anywhere but in the place that Unpack makes, it refuses.
func Main(args []string) int {
	if err := run(args, os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "unpack:", err)
		return 1
	}
	return 0
}

func run(args []string, in io.Reader, out io.Writer) error {
	if len(args) != 4 {
		return fmt.Errorf("%d arguments: this command is for the daemon's own use", len(args))
	}
	var limits layers.Limits
	for i, to := range []*int64{&limits.Bytes, &limits.Entries, &limits.Names} {
		v, err := strconv.ParseInt(args[i+1], 10, 64)
		if err != nil {
			return err
		}
		*to = v
	}
	if err := Confine(limits); err != nil {
		return err
	}
	debug.SetGCPercent(400) // most layers end before the first collection; memoryGoal is for the others
	blob, err := newSource(fdMemory, in, os.NewFile(fdCredits, "credits"))
	if err != nil {
		return err
	}
	dir := os.NewFile(fdLayer, "layer")
	var a answer
	if res, err := guarded(dir, blob, digest.Digest(args[0]), limits); err != nil {
		a.Failure = failureOf(err)
	} else {
		q := res.Quote()
		a.Result = &q
	}
	b, err := json.Marshal(a)
	if err != nil {
		return err
	}
	_, err = out.Write(b)
	return err
}

// guarded makes a parser's panic a failure like others.
func guarded(dir *os.File, in io.Reader, diffID digest.Digest, limits layers.Limits) (res *layers.Result, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = errs.Internal.Errorf("panic while unpacking: %v", p)
		}
	}()
	res, err = layers.Unpack(context.Background(), dir, in, diffID, limits)
	runtime.KeepAlive(dir)
	return res, err
}

// Confine is the part of the confinement that a child does to itself, before it reads anything: its limits, and the
// filter of system calls. It refuses to go on in a process that was not started by Unpack.
func Confine(limits layers.Limits) error {
	if os.Getpid() != 1 {
		return fmt.Errorf("process %d is not the first of a pid namespace: this command is for the daemon's own use", os.Getpid())
	}
	if err := unix.CloseRange(fdCredits+1, math.MaxInt32, 0); err != nil { // what this program's parent has left open
		return os.NewSyscallError("close_range", err)
	}
	_ = unix.Umask(0)
	size := uint64(limits.Bytes) //nolint:gosec // not negative, or beyond every size
	if limits.Bytes == 0 {
		size = 64 << 30
	}
	for what, most := range map[int]uint64{
		unix.RLIMIT_DATA: memory, unix.RLIMIT_NOFILE: files, unix.RLIMIT_CPU: cpuTime,
		unix.RLIMIT_FSIZE: size, unix.RLIMIT_CORE: 0,
	} {
		var have unix.Rlimit
		if err := unix.Getrlimit(what, &have); err != nil {
			return os.NewSyscallError("getrlimit", err)
		}
		most = min(most, have.Max)
		if err := unix.Setrlimit(what, &unix.Rlimit{Cur: most, Max: most}); err != nil {
			return os.NewSyscallError("setrlimit", err)
		}
	}
	return filter()
}
