package unpacker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/cri/internal/layers"
	"github.com/berth-project/berth/proto/errs"
)

// Bounds of what a child says, in bytes.
const (
	// maxAnswer is for all names of a layers.Result, hexadecimal.
	maxAnswer = 32 << 20
	// maxText is what is kept of an error's text.
	maxText = 2 << 10
)

// answer is a child's last word: a result or a failure.
type answer struct {
	Result  *layers.Result `json:"result,omitempty"`
	Failure *failure       `json:"failure,omitempty"`
}

// failure is an error on its way between processes.
type failure struct {
	Class   errs.Class `json:"class"`
	Text    string     `json:"text"`
	Archive bool       `json:"archive,omitempty"` // layers.ErrArchive
	Limit   bool       `json:"limit,omitempty"`   // layers.ErrLimit
	Content bool       `json:"content,omitempty"` // layers.ErrContent
}

func failureOf(err error) *failure {
	f := &failure{
		Class: errs.Of(err), Text: err.Error(), Archive: errors.Is(err, layers.ErrArchive),
		Limit: errors.Is(err, layers.ErrLimit), Content: errors.Is(err, layers.ErrContent),
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		f.Class = errs.ResourceExhausted
	}
	if errors.Is(err, context.Canceled) {
		f.Class = errs.Canceled
	}
	f.Text = f.Text[:min(len(f.Text), maxText)]
	return f
}

// err is the error again. Its text is a stranger's: printable, one line, and short.
func (f *failure) err() error {
	classes := []errs.Class{errs.FailedPrecondition, errs.ResourceExhausted, errs.Canceled}
	e := &childError{text: printable(f.Text), is: []error{errs.Internal}}
	if slices.Contains(classes, f.Class) {
		e.is[0] = f.Class
	}
	for sentinel, on := range map[error]bool{layers.ErrArchive: f.Archive, layers.ErrLimit: f.Limit, layers.ErrContent: f.Content} {
		if on {
			e.is = append(e.is, sentinel)
		}
	}
	return e
}

func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !strconv.IsPrint(r) {
			return '?'
		}
		return r
	}, s[:min(len(s), maxText)])
}

// childError is a failure's error on this side.
type childError struct {
	text string
	is   []error // the class, and which of layers' sentinels it wraps
}

// Error implements error.
func (e *childError) Error() string { return e.text }

// Unwrap makes errors.Is and errs.Of work.
func (e *childError) Unwrap() []error { return e.is }

// listen reads the one JSON value that a child says, to the end of the stream.
func listen(r io.Reader) (*answer, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxAnswer+1))
	if err != nil || len(b) == 0 {
		return nil, errors.Join(err, errSilent)
	}
	if len(b) > maxAnswer {
		return nil, fmt.Errorf("%w: more than %d bytes", errLie, maxAnswer)
	}
	a := &answer{}
	if err := json.Unmarshal(b, a); err != nil {
		return nil, fmt.Errorf("%w: %w", errLie, err)
	}
	if (a.Result == nil) == (a.Failure == nil) {
		return nil, fmt.Errorf("%w: neither a result nor a failure, or both", errLie)
	}
	return a, nil
}

// A child's answers that are none.
var (
	errSilent = errors.New("no answer")
	errLie    = errors.New("its answer cannot be true")
)
