package blockdev_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"testing"

	"github.com/berth-project/berth/csi/internal/blockdev"
	"github.com/berth-project/berth/csi/internal/loopdev"
	"github.com/berth-project/berth/proto/errs"
)

// device is a block device of size bytes, in a file, that ends with the test.
func device(t *testing.T, size int64) *os.File {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test attaches loop devices: run it as root")
	}
	file, err := os.Create(t.TempDir() + "/blockdev-test.img")
	if err != nil {
		t.Fatal(err)
	}
	if err := file.Truncate(size); err != nil {
		t.Fatal(err)
	}
	dev, err := loopdev.Attach(file, loopdev.Options{AutoClear: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(dev.Close(), loopdev.Release(file), file.Close()); err != nil {
			t.Errorf("left behind: %v", err)
		}
	})
	return dev
}

func TestZero(t *testing.T) {
	const size = 2*blockdev.Slice + 8<<20
	dev := device(t, size)
	if n, err := blockdev.Size(dev); err != nil || n != size {
		t.Fatalf("it has %d bytes, %v", n, err)
	}
	mark := bytes.Repeat([]byte("x"), 4096)
	offsets := []int64{0, 4096, blockdev.Slice, size - 4096}
	for _, at := range offsets {
		if _, err := dev.WriteAt(mark, at); err != nil {
			t.Fatal(err)
		}
	}
	if blank, err := blockdev.Blank(dev, size); err != nil || blank {
		t.Errorf("it is blank: %v, %v", blank, err)
	}
	var seen []int64
	stop := errors.New("stop")
	err := blockdev.Zero(context.Background(), dev, 4096, size, func(at int64) error {
		seen = append(seen, at)
		if len(seen) == 2 {
			return stop
		}
		return nil
	})
	if !errors.Is(err, stop) || len(seen) != 2 || seen[1] != 4096+2*blockdev.Slice {
		t.Errorf("it was at %v when it was stopped by %v", seen, err)
	}
	for i, want := range []byte{'x', 0, 0, 'x'} {
		b := make([]byte, 1)
		if _, err := dev.ReadAt(b, offsets[i]); err != nil || b[0] != want {
			t.Errorf("at %d is %q, %v, want %q", offsets[i], b, err, want)
		}
	}
	canceled, cancel := context.WithCancel(context.Background())
	cancel()
	if err := blockdev.Zero(canceled, dev, 0, size, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled, it says %v", err)
	}
	if err := blockdev.ZeroEdges(context.Background(), dev, size); err != nil {
		t.Error(err)
	}
	if blank, err := blockdev.Blank(dev, size); err != nil || !blank {
		t.Errorf("it is not blank, %v", err)
	}
}

func TestCopy(t *testing.T) {
	const size = 20 << 20
	from, to := device(t, size), device(t, size+4096)
	for _, at := range []int64{3 << 20, 7<<20 + 4096, size - 4096} {
		if _, err := from.WriteAt(bytes.Repeat([]byte("data"), 1024), at); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := to.WriteAt(bytes.Repeat([]byte("OLD!"), (size+4096)/4), 0); err != nil {
		t.Fatal(err)
	}
	if err := blockdev.Copy(context.Background(), to, from, size); err != nil {
		t.Fatal(err)
	}
	a, b := make([]byte, size), make([]byte, size+4096)
	_, aerr := from.ReadAt(a, 0)
	_, berr := to.ReadAt(b, 0)
	if aerr != nil || berr != nil || !bytes.Equal(a, b[:size]) {
		t.Errorf("the copy differs, %v, %v", aerr, berr)
	}
	if string(b[size:size+4]) != "OLD!" {
		t.Error("what is beyond the source was touched")
	}
}

func TestExclusive(t *testing.T) {
	dev := device(t, 8<<20)
	f, err := blockdev.Exclusive(dev.Name())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := blockdev.Exclusive(dev.Name()); errs.Of(err) != errs.FailedPrecondition {
		t.Errorf("a second time: %v", err)
	}
	if err := blockdev.Alone(dev.Name()); errs.Of(err) != errs.FailedPrecondition {
		t.Errorf("alone while it is held: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := blockdev.Alone(dev.Name()); err != nil {
		t.Errorf("alone: %v", err)
	}
	n, err := blockdev.Number(dev)
	if err != nil || n == 0 {
		t.Errorf("its number is %d, %v", n, err)
	}
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := blockdev.Number(null); errs.Of(err) != errs.FailedPrecondition {
		t.Errorf("/dev/null: %v", err)
	}
	if err := null.Close(); err != nil {
		t.Error(err)
	}
}
