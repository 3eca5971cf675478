// Package errs is the error vocabulary of every Berth program: a dozen classes, each with one meaning, that are
// mapped to gRPC, shim and CNI codes in exactly one function per edge.
//
// A domain function returns an error that wraps one class; an edge asks for it with [Of]. The classes follow the
// canonical gRPC codes (grpc.github.io/grpc/core/md_doc_statuscodes.html) so that the mapping is an identity.
// The package must not import anything but the standard library.
package errs

import (
	"context"
	"errors"
	"fmt"
	"os"
)

// Class is a kind of failure. It is itself an error, so errors.Is(err, errs.NotFound) works on anything that
// wraps it.
type Class string

// The classes. Their text is what crosses the shim socket, so it never changes.
const (
	// Internal is a broken invariant or an unexpected failure of the kernel or the disk.
	Internal Class = "internal"
	// InvalidArgument is a request that can never succeed; the text names the field and the way out.
	InvalidArgument Class = "invalid argument"
	// NotFound is an object that does not exist.
	NotFound Class = "not found"
	// AlreadyExists is an object that exists with a different content or owner.
	AlreadyExists Class = "already exists"
	// FailedPrecondition is a request that is valid but not in the object's present state.
	FailedPrecondition Class = "failed precondition"
	// PermissionDenied is a caller that may not do this.
	PermissionDenied Class = "permission denied"
	// Unauthenticated is a registry that refused the credentials it was given.
	Unauthenticated Class = "unauthenticated"
	// ResourceExhausted is a full disk, an exhausted range, a limit that was met.
	ResourceExhausted Class = "resource exhausted"
	// OutOfRange is a size or an offset beyond what there can be.
	OutOfRange Class = "out of range"
	// Aborted is a conflict with another operation; the caller may retry at once.
	Aborted Class = "aborted"
	// Unavailable is a peer that does not answer; the caller may retry later.
	Unavailable Class = "unavailable"
	// DeadlineExceeded is a caller's or an operation's time that ran out.
	DeadlineExceeded Class = "deadline exceeded"
	// Canceled is a caller that went away.
	Canceled Class = "canceled"
	// Unimplemented is a verb or an option this build does not have.
	Unimplemented Class = "unimplemented"
)

// Error implements error.
func (c Class) Error() string { return string(c) }

// Errorf returns an error of class c whose text is the formatted message alone; %w in format is kept, so the
// cause stays reachable by errors.Is and errors.As.
func (c Class) Errorf(format string, args ...any) error {
	return &classified{class: c, err: fmt.Errorf(format, args...)}
}

// Wrap gives err the class c without changing its text. A nil err stays nil.
func (c Class) Wrap(err error) error {
	if err == nil {
		return nil
	}
	return &classified{class: c, err: err}
}

type classified struct {
	class Class
	err   error
}

func (e *classified) Error() string   { return e.err.Error() }
func (e *classified) Unwrap() []error { return []error{e.class, e.err} }

// Of returns the class of err: the outermost one that was given to it, else the one that a standard error
// stands for (context and file errors), else Internal. Of(nil) is the empty class.
func Of(err error) Class {
	if err == nil {
		return ""
	}
	var e *classified
	if errors.As(err, &e) {
		return e.class
	}
	var c Class
	if errors.As(err, &c) {
		return c
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return DeadlineExceeded
	case errors.Is(err, context.Canceled):
		return Canceled
	}
	return Internal
}
