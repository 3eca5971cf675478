package ipam_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/berth-project/berth/cni/internal/ipam"
	"github.com/berth-project/berth/proto/errs"
)

func open(t *testing.T, dir, subnet string) *ipam.Pool {
	t.Helper()
	p, err := ipam.Open(dir, netip.MustParsePrefix(subnet))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func take(t *testing.T, p *ipam.Pool, w ipam.Window, now ipam.Clock, want string) {
	t.Helper()
	a, err := p.Take(w, now, 130)
	if err != nil || a.String() != want {
		t.Fatalf("at %d: took %v, %v, want %s", now, a, err, want)
	}
}

func TestOrderAndCooldown(t *testing.T) {
	p := open(t, t.TempDir(), "10.0.0.0/29")
	var w ipam.Window
	for i, want := range []string{"10.0.0.1", "10.0.0.2", "10.0.0.3"} {
		take(t, p, w, ipam.Clock(100+i), want)
	}
	for i, a := range []string{"10.0.0.2", "10.0.0.1", "10.0.0.3"} {
		if err := p.Release(addr(a), ipam.Clock(200+i)); err != nil {
			t.Fatal(err)
		}
	}
	// The unused ones first, then the one that has rested longest, though none has rested enough.
	for i, want := range []string{"10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.2", "10.0.0.1", "10.0.0.3"} {
		take(t, p, w, ipam.Clock(210+i), want)
	}
	if _, err := p.Take(w, 10_000, 130); !errors.Is(err, errs.ResourceExhausted) {
		t.Errorf("full pool: %v", err)
	}
	if free, err := p.Free(w); free || err != nil {
		t.Errorf("full pool is free: %v, %v", free, err)
	}
	// A double release does not restart the rest, and a strange address is nothing.
	_ = p.Release(addr("10.0.0.5"), 300)
	_ = p.Release(addr("10.0.0.5"), 400)
	_ = p.Release(addr("10.0.1.5"), 400)
	take(t, p, w, 430, "10.0.0.5")
}

// TestExact: an address that is asked for by name is had once, within the window, rested or not.
func TestExact(t *testing.T) {
	p := open(t, t.TempDir(), "10.0.0.0/29")
	w := ipam.Window{Exclude: []netip.Prefix{netip.MustParsePrefix("10.0.0.4/32")}}
	if err := p.TakeExact(w, addr("10.0.0.3")); err != nil {
		t.Fatal(err)
	}
	for a, want := range map[string]errs.Class{"10.0.0.3": errs.AlreadyExists, "10.0.0.4": errs.InvalidArgument, "10.0.1.3": errs.InvalidArgument} {
		if err := p.TakeExact(w, addr(a)); errs.Of(err) != want {
			t.Errorf("%s: %v, want %v", a, err, want)
		}
	}
	take(t, p, w, 100, "10.0.0.1")
	take(t, p, w, 101, "10.0.0.2")
	take(t, p, w, 102, "10.0.0.5")
	if err := p.Release(addr("10.0.0.3"), 103); err != nil {
		t.Fatal(err)
	}
	if err := p.TakeExact(w, addr("10.0.0.3")); err != nil {
		t.Errorf("one that rests: %v", err)
	}
}

// TestTurn: an address comes back only when all others have had their turn, though it has rested long enough.
func TestTurn(t *testing.T) {
	p := open(t, t.TempDir(), "10.0.0.0/29")
	var w ipam.Window
	for i := range 12 {
		take(t, p, w, ipam.Clock(1000*(i+1)), fmt.Sprintf("10.0.0.%d", 1+i%6))
		if err := p.Release(addr(fmt.Sprintf("10.0.0.%d", 1+i%6)), ipam.Clock(1000*(i+1))); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWindow(t *testing.T) {
	p := open(t, t.TempDir(), "fd00::/64")
	w := ipam.Window{Start: addr("fd00::10"), End: addr("fd00::13"), Exclude: []netip.Prefix{netip.MustParsePrefix("fd00::11/128")}}
	for _, want := range []string{"fd00::10", "fd00::12", "fd00::13"} {
		take(t, p, w, 1, want)
	}
	if _, err := p.Take(w, 1, 130); !errors.Is(err, errs.ResourceExhausted) {
		t.Errorf("got %v", err)
	}
	for a, want := range map[string]error{"fd00::12": errs.AlreadyExists, "fd00::11": errs.InvalidArgument, "fd00::14": errs.InvalidArgument, "fd01::1": errs.InvalidArgument} {
		if err := p.TakeExact(w, addr(a)); !errors.Is(err, want) {
			t.Errorf("TakeExact(%s) = %v, want %v", a, err, want)
		}
	}
	if err := p.TakeExact(ipam.Window{}, addr("fd00::1:0:0:1")); !errors.Is(err, errs.InvalidArgument) {
		t.Errorf("an address beyond the pool: %v", err)
	}
}

// TestModel compares the pool with a map over random operations, reopening it now and then.
func TestModel(t *testing.T) {
	dir := t.TempDir()
	const subnet = "10.1.0.0/22"
	p := open(t, dir, subnet)
	model := map[netip.Addr]bool{}
	rng := rand.New(rand.NewPCG(1, 2))
	for step := range 20_000 {
		switch k := rng.IntN(100); {
		case k < 55:
			a, err := p.Take(ipam.Window{}, ipam.Clock(step+1), 130)
			if len(model) == 1022 {
				if !errors.Is(err, errs.ResourceExhausted) {
					t.Fatalf("step %d: %v from a full pool, %v", step, a, err)
				}
			} else if err != nil || model[a] {
				t.Fatalf("step %d: %v twice, %v", step, a, err)
			} else {
				model[a] = true
			}
		case k < 98:
			for a := range model {
				if err := p.Release(a, ipam.Clock(step+1)); err != nil {
					t.Fatal(err)
				}
				delete(model, a)
				break
			}
		default:
			if err := errors.Join(p.Flush(), p.Close()); err != nil {
				t.Fatal(err)
			}
			p = open(t, dir, subnet)
		}
	}
}

func TestReset(t *testing.T) {
	dir := t.TempDir()
	p := open(t, dir, "10.0.0.0/29")
	for range 3 {
		if _, err := p.Take(ipam.Window{}, 1, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(p.Flush(), p.Reset([]netip.Addr{addr("10.0.0.3"), addr("10.0.0.5"), addr("10.9.9.9")}, 5)); err != nil {
		t.Fatal(err)
	}
	for a, want := range map[string]bool{"10.0.0.1": false, "10.0.0.2": false, "10.0.0.3": true, "10.0.0.5": true} {
		if got, err := p.Taken(addr(a)); got != want || err != nil {
			t.Errorf("%s taken = %v, %v", a, got, err)
		}
	}
}

func TestEveryDamageIsSeen(t *testing.T) {
	dir := t.TempDir()
	p := open(t, dir, "10.0.0.0/24")
	if _, err := p.Take(ipam.Window{}, 1, 0); err != nil {
		t.Fatal(err)
	}
	if err := p.Flush(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, ipam.Name(netip.MustParsePrefix("10.0.0.0/24")))
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int{0, 9, 20, 62, 4096, 5000, len(good) - 1} {
		bad := append([]byte(nil), good...)
		bad[at] ^= 0x10
		if err := os.WriteFile(file, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		q, err := ipam.Open(dir, netip.MustParsePrefix("10.0.0.0/24"))
		if err == nil {
			_, err = q.Take(ipam.Window{}, 1, 0)
			_ = q.Close()
		}
		if !errors.Is(err, ipam.ErrDamaged) {
			t.Errorf("flipped byte %d: %v", at, err)
		}
	}
	if err := os.WriteFile(file, good[:6000], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := open(t, dir, "10.0.0.0/24").Take(ipam.Window{}, 1, 0); !errors.Is(err, ipam.ErrDamaged) {
		t.Errorf("truncated: %v", err)
	}
}

func BenchmarkTakeRelease(b *testing.B) {
	dir := b.TempDir()
	for b.Loop() {
		p, err := ipam.Open(dir, netip.MustParsePrefix("10.0.0.0/8"))
		if err != nil {
			b.Fatal(err)
		}
		a, err := p.Take(ipam.Window{}, 1, 0)
		if err := errors.Join(err, p.Release(a, 2), p.Flush(), p.Close()); err != nil {
			b.Fatal(err)
		}
	}
}
