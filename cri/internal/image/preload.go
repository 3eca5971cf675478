package image

import "context"

func (s *Service) preload(context.Context) {}
