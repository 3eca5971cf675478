package spec_test

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/berth-project/berth/cni/internal/spec"
	"github.com/berth-project/berth/proto/errs"
	"github.com/containernetworking/cni/pkg/types/create"
)

func TestEveryVersionIsWhatTheReferenceReads(t *testing.T) {
	r := spec.Result{
		Interfaces: []spec.Interface{{Name: "bth0", MTU: 1500}, {Name: "eth0", Sandbox: "/x", MTU: 1500}},
		IPs: []spec.IP{
			{Address: netip.MustParsePrefix("10.0.0.2/32"), Gateway: netip.MustParseAddr("169.254.1.1"), Interface: 1},
			{Address: netip.MustParsePrefix("fd00::2/128"), Gateway: netip.MustParseAddr("fe80::1"), Interface: 1},
		},
		Routes: []spec.Route{{Dst: netip.MustParsePrefix("0.0.0.0/0"), GW: netip.MustParseAddr("169.254.1.1")}},
		DNS:    spec.DNS{Nameservers: []string{"10.96.0.10"}, Search: []string{"svc"}},
	}
	for _, v := range spec.Versions() {
		b, err := r.Encode(v)
		if err != nil {
			t.Fatal(err)
		}
		got, err := create.Create(v, b)
		if err != nil {
			t.Fatalf("%s: %v in %s", v, err, b)
		}
		if got.Version() != v {
			t.Errorf("%s reads as %s", v, got.Version())
		}
	}
	if _, err := r.Encode("9.9.9"); spec.AsError(err).Code != spec.CodeVersion {
		t.Errorf("unknown version: %v", err)
	}
}

func TestCodes(t *testing.T) {
	for _, c := range []struct {
		err  error
		want spec.Code
	}{
		{errors.New("x"), 999},
		{errs.InvalidArgument.Errorf("x"), 7},
		{errs.NotFound, 3},
		{errs.ResourceExhausted, 11},
		{errs.Unavailable, 11},
		{errs.AlreadyExists, 100},
		{errs.FailedPrecondition, 101},
		{fmt.Errorf("outer: %w", spec.Errorf(8, "inner")), 8},
	} {
		if e := spec.AsError(c.err); e.Code != c.want || e.Error() != c.err.Error() {
			t.Errorf("%v: code %d %q, want %d", c.err, e.Code, e, c.want)
		}
	}
}
