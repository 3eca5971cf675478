package errs_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/berth-project/berth/proto/errs"
)

func TestOf(t *testing.T) {
	for _, c := range []struct {
		name string
		err  error
		want errs.Class
	}{
		{"nil", nil, ""},
		{"plain", io.EOF, errs.Internal},
		{"bare class", errs.NotFound, errs.NotFound},
		{"wrapped class", fmt.Errorf("pod x: %w", errs.NotFound), errs.NotFound},
		{"errorf", errs.InvalidArgument.Errorf("field %q", "uid"), errs.InvalidArgument},
		{"wrapped errorf", fmt.Errorf("run: %w", errs.Aborted.Errorf("busy")), errs.Aborted},
		{"outermost wins", errs.Unavailable.Errorf("shim: %w", errs.NotFound), errs.Unavailable},
		{"context", fmt.Errorf("pull: %w", context.DeadlineExceeded), errs.DeadlineExceeded},
		{"cancel", context.Canceled, errs.Canceled},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := errs.Of(c.err); got != c.want {
				t.Errorf("Of(%v) = %q, want %q", c.err, got, c.want)
			}
		})
	}
}

func TestErrorfKeepsCauseAndText(t *testing.T) {
	err := errs.ResourceExhausted.Errorf("write /x: %w", io.ErrShortWrite)
	if !errors.Is(err, io.ErrShortWrite) || !errors.Is(err, errs.ResourceExhausted) {
		t.Errorf("cause or class lost: %v", err)
	}
	if err.Error() != "write /x: short write" {
		t.Errorf("text = %q", err)
	}
	if errs.NotFound.Wrap(nil) != nil {
		t.Error("Wrap(nil) is not nil")
	}
}
