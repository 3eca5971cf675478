package image

import (
	"context"
	"io"

	"github.com/berth-project/berth/proto/errs"
)

// Import is not written yet.
func (s *Service) Import(context.Context, io.Reader) ([]*Image, error) {
	return nil, errs.Unimplemented.Errorf("import")
}

// Export is not written yet.
func (s *Service) Export(context.Context, io.Writer, []string) error {
	return errs.Unimplemented.Errorf("export")
}
