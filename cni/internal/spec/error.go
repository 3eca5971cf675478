// Package spec is the CNI specification 0.1.0 to 1.1.0 as types: versions, error codes, and results in every
// version's shape (github.com/containernetworking/cni/blob/main/SPEC.md). It is pure and knows nothing of Berth.
//
// The project's own Go types are not used because they link package net and convert a result through every
// version in between; the tests compare with them.
package spec

import (
	"errors"
	"fmt"

	"github.com/berth-project/berth/proto/errs"
)

// Code is an error code of the specification, section "Error", or of this plugin from 100 on.
type Code int

// The codes.
const (
	CodeVersion     Code = 1
	CodeField       Code = 2
	CodeUnknown     Code = 3
	CodeEnvironment Code = 4
	CodeIO          Code = 5
	CodeDecode      Code = 6
	CodeConfig      Code = 7
	CodeNetNS       Code = 8
	CodeTryAgain    Code = 11
	CodeUnavailable Code = 50
	CodeLimited     Code = 51
	// CodeExists is an attachment that is there already (ours).
	CodeExists Code = 100
	// CodeMismatch is a CHECK that found something other than ADD left (ours).
	CodeMismatch Code = 101
	CodeInternal Code = 999
)

// Error is a failure with the code that the specification gives it.
type Error struct {
	Code    Code   `json:"code"`
	Msg     string `json:"msg"`
	Details string `json:"details"`
	cause   error
}

// Error implements error.
func (e *Error) Error() string {
	if e.Details == "" {
		return e.Msg
	}
	return e.Msg + ": " + e.Details
}

// Unwrap returns the cause, if any.
func (e *Error) Unwrap() error { return e.cause }

// Errorf returns an error with a code; %w in format is kept.
func Errorf(code Code, format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: code, Msg: err.Error(), cause: errors.Unwrap(err)}
}

// AsError gives any error its code: the one it carries, else the one its class stands for. It is the only
// place where classes become CNI codes.
func AsError(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		if e.Error() == err.Error() {
			return e
		}
		return &Error{Code: e.Code, Msg: err.Error(), cause: err}
	}
	code := CodeInternal
	switch errs.Of(err) {
	case errs.InvalidArgument, errs.Unimplemented:
		code = CodeConfig
	case errs.NotFound:
		code = CodeUnknown
	case errs.AlreadyExists:
		code = CodeExists
	case errs.FailedPrecondition:
		code = CodeMismatch
	case errs.ResourceExhausted, errs.Aborted, errs.Unavailable, errs.DeadlineExceeded, errs.Canceled:
		code = CodeTryAgain
	}
	return &Error{Code: code, Msg: err.Error(), cause: err}
}
