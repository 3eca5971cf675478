package image

// DropIncomplete lets a test do at once what Run does after an hour.
func (s *Service) DropIncomplete() { s.dropIncomplete() }
