// Package layers turns layer archives into directories that overlayfs can stack, and keeps those directories.
//
// Unpack turns a compressed stream and a directory descriptor into files and a list of what the layer leaves open. It
// knows nothing of stores or networks and needs few privileges: package unpacker runs it in a confined child. What
// comes from there is believed in nothing (Result.Check, Result.Seal). Store keeps the
// results: staged, committed durably, counted, and thrown away when nobody refers to them. The package must not
// import registry or image.
//
// A layer is unpacked on its own, whatever lies below it, and so is named by its diffID and shared by every image
// that has it. Two things in a layer depend on the layers below: directories that it only mentions as parents,
// which keep the attributes they have below, and hard links to files that are below. These are recorded, and
// become, per chain of layers, a small extra directory stacked above the layer (see fix.go).
package layers

import (
	"errors"

	"github.com/berth-project/berth/proto/errs"
)

// Limits bound what one layer may cost. Zero fields mean the default.
type Limits struct {
	// Bytes of file content; default 64 GiB.
	Bytes int64
	// Entries in the archive; default 4 million.
	Entries int64
	// Names is the total length of paths that have to be remembered while unpacking; default 64 MiB.
	Names int64
}

func (l Limits) withDefaults() Limits {
	if l.Bytes == 0 {
		l.Bytes = 64 << 30
	}
	if l.Entries == 0 {
		l.Entries = 4 << 20
	}
	if l.Names == 0 {
		l.Names = 64 << 20
	}
	return l
}

// Bounds of a name in an archive: what the kernel takes (PATH_MAX), and a depth that every tool can walk.
const (
	maxPath  = 4095
	maxDepth = 1024
)

// maxOpen bounds the total length of the names in a Result, in bytes: they are kept as long as the layer.
const maxOpen = 8 << 20

// ErrArchive is wrapped by errors that mean the archive itself is bad; they are errs.FailedPrecondition.
var ErrArchive = errors.New("invalid layer archive")

// ErrLimit is wrapped by errors that mean a layer is more than is allowed; what follows in the stream is of no
// interest. They are errs.FailedPrecondition and wrap ErrArchive as well.
var ErrLimit = errors.New("over the limit")

func badEntry(name string, why string, args ...any) error {
	err := errs.FailedPrecondition.Errorf(why, args...)
	return errs.FailedPrecondition.Errorf("%w: entry %.300q: %w", ErrArchive, name, err)
}
