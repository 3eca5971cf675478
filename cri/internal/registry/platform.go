package registry

import (
	"runtime"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/cpu"

	"github.com/berth-project/berth/proto/errs"
)

// Select picks the manifest of an index for this machine: linux, its architecture, the best variant it can run,
// the first of equals. An entry without a platform fits when nothing better does. errs.NotFound names what the
// index has.
func Select(ix *ocispec.Index) (ocispec.Descriptor, error) {
	best, rank := ocispec.Descriptor{}, 0
	var have []string
	for _, d := range ix.Manifests {
		r := 1
		if d.Platform != nil {
			r = platformRank(d.Platform)
			have = append(have, d.Platform.OS+"/"+d.Platform.Architecture+d.Platform.Variant)
		}
		if r > rank {
			best, rank = d, r
		}
	}
	if rank == 0 {
		return best, errs.NotFound.Errorf("no image for linux/%s; there are %.300v", runtime.GOARCH, have)
	}
	return best, nil
}

// platformRank is 0 for a platform that does not run here; more is better.
func platformRank(p *ocispec.Platform) int {
	if p.OS != "linux" || p.Architecture != runtime.GOARCH {
		return 0
	}
	return variantRank(p.Architecture, p.Variant)
}

func variantRank(arch, variant string) int {
	switch arch + "/" + variant {
	case "amd64/", "amd64/v1", "arm64/v8", "arm64/":
		return 10 // what everybody builds and tests; a higher level is taken only where it is the only one
	case "amd64/v2":
		return runnable(cpu.X86.HasSSE42 && cpu.X86.HasPOPCNT, 9)
	case "amd64/v3":
		return runnable(cpu.X86.HasAVX2 && cpu.X86.HasBMI2 && cpu.X86.HasFMA, 8)
	case "amd64/v4":
		return runnable(cpu.X86.HasAVX512F && cpu.X86.HasAVX512BW && cpu.X86.HasAVX512VL, 7)
	case "arm/v7":
		return 10
	case "arm/v6":
		return 9
	case "arm/v5", "arm/":
		return 8
	}
	if variant == "" {
		return 10
	}
	return 0
}

func runnable(ok bool, rank int) int {
	if ok {
		return rank
	}
	return 0
}

// CheckPlatform refuses a config that names another platform; one that names none is taken.
func CheckPlatform(c *ocispec.Image) error {
	if c.OS != "" && c.OS != "linux" || c.Architecture != "" && c.Architecture != runtime.GOARCH {
		return errs.NotFound.Errorf("no image for linux/%s; this one is for %.50s/%.50s", runtime.GOARCH, c.OS, c.Architecture)
	}
	return nil
}
