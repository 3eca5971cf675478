package csibench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// A job is one pattern of requests: what fio calls rw, its block size, how many requests are under way at once, and
// whether each write is followed by an fsync.
type job struct {
	name, rw, size, depth string
	sync                  bool
}

// jobs are in an order in which none makes the file worse for the next on a file system that copies on write.
func jobs() []job {
	return []job{
		{name: "read_1m", rw: "read", size: "1M", depth: "4"},
		{name: "randread_4k_qd1", rw: "randread", size: "4k", depth: "1"},
		{name: "randread_4k_qd32", rw: "randread", size: "4k", depth: "32"},
		{name: "write_1m", rw: "write", size: "1M", depth: "4"},
		{name: "randwrite_4k_qd32", rw: "randwrite", size: "4k", depth: "32"},
		{name: "randwrite_4k_fsync", rw: "randwrite", size: "4k", depth: "1", sync: true},
	}
}

const (
	fileSize = 256 << 20              // bytes of the file that every job works on
	pairs    = 18                     // how often the sides take turns, after once for caches
	counted  = 9                      // of them: those during which the least waited for a CPU, whoever it was
	slice    = 500 * time.Millisecond // of one side's turn: short, so that the machine is the same for both of a pair
)

func target(dir string) string { return filepath.Join(dir, "fio") }

// fill writes the file of a directory by direct I/O, whole and in order, so that no job meets an extent that was
// allocated and never written, whatever the side.
func fill(dir string) (err error) {
	f, err := os.OpenFile(target(dir), os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_DIRECT, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Sync(), f.Close()) }()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, fileSize); err != nil {
		return fmt.Errorf("%s: fallocate: %w", f.Name(), err)
	}
	buf, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS) // aligned
	if err != nil {
		return err
	}
	defer unix.Munmap(buf) //nolint:errcheck // memory
	for i := range buf {
		buf[i] = byte(i * 7)
	}
	for range fileSize / len(buf) {
		if _, err := f.Write(buf); err != nil {
			return err
		}
	}
	return nil
}

// settle writes back what a file system holds, ends its transaction, and drops the file's pages: no side's turn pays
// for the one before.
func settle(dir string) error {
	f, err := os.Open(target(dir))
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(f.Fd())), unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED), f.Close())
}

// run gives one side its turn and returns MiB/s.
func (j job) run(ctx context.Context, dir string) (float64, error) {
	args := []string{
		"--name=x", "--filename=" + target(dir), fmt.Sprintf("--size=%d", fileSize), "--rw=" + j.rw, "--bs=" + j.size, "--iodepth=" + j.depth,
		"--direct=1", "--ioengine=libaio", "--overwrite=1", "--fallocate=none", "--randrepeat=0", "--time_based", fmt.Sprintf("--runtime=%dms", slice.Milliseconds()), "--output-format=json",
	}
	if j.sync {
		args = append(args, "--fsync=1")
	}
	cmd := exec.CommandContext(ctx, "fio", args...)
	cmd.Dir = os.TempDir()
	out, err := cmd.Output()
	if err != nil {
		return 0, fmt.Errorf("fio %v: %w: %s", args, err, out)
	}
	var res struct {
		Jobs []struct{ Read, Write struct{ Bw float64 } } // KiB/s
	}
	if err := json.Unmarshal(out, &res); err != nil {
		return 0, fmt.Errorf("fio's output: %w", err)
	}
	if len(res.Jobs) != 1 || res.Jobs[0].Read.Bw+res.Jobs[0].Write.Bw == 0 {
		return 0, fmt.Errorf("fio %v did nothing: %s", args, out)
	}
	return (res.Jobs[0].Read.Bw + res.Jobs[0].Write.Bw) / 1024, nil
}
