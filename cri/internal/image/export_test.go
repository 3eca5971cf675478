package image

import (
	"time"

	"github.com/berth-project/berth/cri/internal/registry"
)

// DropIncomplete lets a test do at once what Run does after an hour.
func (s *Service) DropIncomplete() { s.dropIncomplete() }

// Hurry makes the pauses of the registry client those of a test.
func (s *Service) Hurry() {
	s.registry = registry.New(registry.Config{
		HostsDir: s.cfg.HostsDir, UserAgent: "berth-test", Stall: 300 * time.Millisecond, MinRate: 10_000,
		Backoff: time.Millisecond, MaxRetryAfter: 3 * time.Second, Log: s.log,
	})
}
