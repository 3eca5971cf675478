// Package atomicfile writes files that are old or new, never torn, and records that know when they are damaged.
//
// Write replaces a file by a temporary one and rename(2); it does not call fsync, because a record that must
// survive a power cut is synced by its owner, in groups (fsync costs 0.2–10 ms). A sealed file starts with one
// header line that holds a format name, the length and the CRC-32C of the rest, so that a torn, truncated or
// flipped file is told from a good one.
package atomicfile

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// ErrDamaged is returned (wrapped) by ReadSealed for a file whose content is not what was sealed.
var ErrDamaged = errors.New("damaged file")

const header = "berth-sealed-1 %08x %d\n"

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Write makes path hold data with mode perm. On an error the old content is untouched and no temporary file is
// left. The temporary name is in the same directory and starts with ".tmp-", which readers of the directory skip. A
// writer that is killed leaves it: see RemoveLeftovers.
func Write(path string, data []byte, perm fs.FileMode) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), temporary(path)+"*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, werr := f.Write(data)
	if err = errors.Join(werr, f.Chmod(perm), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// temporary begins the name of every temporary file of path's.
func temporary(path string) string {
	base := filepath.Base(path)
	return ".tmp-" + base[:min(len(base), 120)] + "-" // a name has at most 255 bytes (NAME_MAX)
}

// RemoveLeftovers removes what writers of path that were killed have left. Nobody may be writing path. That there is
// nothing is fine.
func RemoveLeftovers(path string) error {
	ents, err := os.ReadDir(filepath.Dir(path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	prefix := temporary(path)
	for _, e := range ents {
		if !strings.HasPrefix(e.Name(), prefix) {
			continue
		}
		if rerr := os.Remove(filepath.Join(filepath.Dir(path), e.Name())); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}
	return err
}

// WriteSealed is Write of data behind a header that ReadSealed checks.
func WriteSealed(path string, data []byte, perm fs.FileMode) error {
	return Write(path, Seal(data), perm)
}

// Seal returns data behind its header.
func Seal(data []byte) []byte {
	b := fmt.Appendf(make([]byte, 0, len(data)+40), header, crc32.Checksum(data, castagnoli), len(data))
	return append(b, data...)
}

// Unseal checks and removes the header; anything wrong is ErrDamaged.
func Unseal(b []byte) ([]byte, error) {
	line, data, ok := bytes.Cut(b, []byte("\n"))
	var sum uint32
	var size int
	if !ok {
		return nil, fmt.Errorf("%w: no header", ErrDamaged)
	}
	if _, err := fmt.Sscanf(string(line)+"\n", header, &sum, &size); err != nil {
		return nil, fmt.Errorf("%w: bad header %.40q", ErrDamaged, line)
	}
	if len(data) != size {
		return nil, fmt.Errorf("%w: %d bytes instead of %d", ErrDamaged, len(data), size)
	}
	if got := crc32.Checksum(data, castagnoli); got != sum {
		return nil, fmt.Errorf("%w: checksum %08x instead of %08x", ErrDamaged, got, sum)
	}
	return data, nil
}

// ReadSealed reads a file written by WriteSealed. A file that is not there is fs.ErrNotExist, one that is not
// intact ErrDamaged; both name the path.
func ReadSealed(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	data, err := Unseal(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return data, nil
}

// Quarantine moves a damaged file out of the way, into dir, under its own name with a number that is free.
// It never overwrites: the evidence of two faults is kept.
func Quarantine(path, dir string) (string, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	for i := range 10_000 {
		to := filepath.Join(dir, fmt.Sprintf("%s.%d", filepath.Base(path), i))
		if _, err := os.Lstat(to); err == nil {
			continue
		}
		return to, os.Rename(path, to)
	}
	return "", fmt.Errorf("quarantine %s is full", dir)
}
