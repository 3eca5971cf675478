package netconf

import (
	"math"

	"github.com/berth-project/berth/cni/internal/spec"
)

// Bandwidth is the bandwidth capability (CONVENTIONS.md): rates in bits per second and bursts in bits, ingress being
// what the container receives. Zero is no limit.
type Bandwidth struct {
	IngressRate  uint64 `json:"ingressRate"`
	IngressBurst uint64 `json:"ingressBurst"`
	EgressRate   uint64 `json:"egressRate"`
	EgressBurst  uint64 `json:"egressBurst"`
}

// Check refuses a rate without a burst, the other way round, and what a token bucket cannot count. key is where the
// limits stand.
func (b *Bandwidth) Check(key string) error {
	if b == nil {
		return nil
	}
	for _, d := range []struct {
		name        string
		rate, burst uint64
	}{{"ingress", b.IngressRate, b.IngressBurst}, {"egress", b.EgressRate, b.EgressBurst}} {
		switch {
		case d.rate != 0 && d.burst == 0:
			return spec.Errorf(spec.CodeConfig, "%s.%sRate is %d, then %sBurst must be set too", key, d.name, d.rate, d.name)
		case d.rate == 0 && d.burst != 0:
			return spec.Errorf(spec.CodeConfig, "%s.%sBurst is %d, then %sRate must be set too", key, d.name, d.burst, d.name)
		case d.rate != 0 && d.rate < 8:
			return spec.Errorf(spec.CodeConfig, "%s.%sRate %d is less than a byte per second", key, d.name, d.rate)
		case d.burst/8 >= math.MaxUint32:
			return spec.Errorf(spec.CodeConfig, "%s.%sBurst %d is 4 GiB or more", key, d.name, d.burst)
		}
	}
	return nil
}

// Zero says whether there is no limit at all.
func (b *Bandwidth) Zero() bool { return b == nil || *b == Bandwidth{} }
