package node

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/berth-project/berth/deviceplugin/internal/discovery"
	"github.com/berth-project/berth/deviceplugin/internal/discovery/fake"
	"github.com/berth-project/berth/deviceplugin/internal/driver"
)

// BenchmarkRound is what a look at sixteen GPUs on which nothing happens costs.
func BenchmarkRound(b *testing.B) {
	src, err := fake.Open("a100x16")
	if err != nil {
		b.Fatal(err)
	}
	dir := b.TempDir()
	n := New(Config{
		Dir: dir, CDIDir: dir + "/cdi", Poll: time.Second, Log: slog.New(slog.DiscardHandler), Now: time.Now,
		Driver: Driver{Root: driver.Root{Host: dir, View: dir}, Dev: "/dev", DevView: dir + "/dev", Majors: src.Majors, Optional: true},
	}, discovery.NewGuard(src, discovery.Limits{Inventory: time.Second, Sample: time.Second}))
	b.ReportAllocs()
	for b.Loop() {
		n.round(context.Background())
	}
}
