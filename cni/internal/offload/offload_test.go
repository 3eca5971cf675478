package offload

import (
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func newTest(t *testing.T, kept string) *Test {
	t.Helper()
	x, err := New(kept, slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// TestVerdictsAreKept: they last as long as their file, and one that is damaged is an error and no verdict.
func TestVerdictsAreKept(t *testing.T) {
	kept := filepath.Join(t.TempDir(), "checksums")
	a := newTest(t, kept)
	x := Target{Dev: "vx", Index: 7, Peer: netip.MustParseAddr("10.0.2.0"), Port: 8473}
	a.targets[x] = asking{}
	a.judge(x)
	a.judge(Target{Dev: "gone"})
	for _, got := range [][]Verdict{a.Verdicts(), newTest(t, kept).Verdicts()} {
		if len(got) != 1 || got[0].Dev != "vx" || got[0].Why == "" {
			t.Errorf("%+v", got)
		}
	}
	select {
	case <-a.Changed():
	default:
		t.Error("nobody was told")
	}
	if err := os.WriteFile(kept, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if b, err := New(kept, nil); err == nil || b == nil || len(b.Verdicts()) != 0 {
		t.Errorf("a damaged file: %v", err)
	}
}

// TestPace: some are asked at a time; who is silent is asked ever less often, who is sound seldom, whose device is settled
// not at all.
func TestPace(t *testing.T) {
	a := newTest(t, filepath.Join(t.TempDir(), "checksums"))
	for i := range 100 {
		x := Target{Dev: "vx", Peer: netip.AddrFrom4([4]byte{10, 0, byte(i), 0})}
		a.targets[x] = asking{}
		a.sockets[x.link()] = &socket{}
	}
	now := time.Now()
	asked := 0
	for range 4 {
		batch, next := a.due(now)
		if len(batch) > abreast || next != pace {
			t.Fatalf("%d at a time, then after %s", len(batch), next)
		}
		asked += len(batch)
		for i, x := range batch {
			a.settle(x, i%2 == 0)
		}
	}
	if all, sound := a.Asked(); asked != 100 || all != 100 || sound != 50 {
		t.Errorf("asked %d of %d, %d sound", asked, all, sound)
	}
	if batch, next := a.due(now); len(batch) != 0 || next < soon/4 || next > 2*soon {
		t.Errorf("%d again, next after %s", len(batch), next)
	}
	x := Target{Dev: "vx", Peer: netip.AddrFrom4([4]byte{10, 0, 1, 0})}
	for range 40 {
		a.settle(x, false)
	}
	if in := time.Until(a.targets[x].due); in < late/2-time.Second || in > 2*late {
		t.Errorf("asked again after %s", in)
	}
	a.verdicts["vx"] = Verdict{}
	if batch, _ := a.due(now.Add(24 * time.Hour)); len(batch) != 0 {
		t.Error("a settled device is asked about")
	}
}

func TestMessages(t *testing.T) {
	for k := plain; k <= heardSummed; k++ {
		m := message{k, 0x0102030405060708}
		if got, err := parse(m.bytes()); err != nil || got != m {
			t.Errorf("%+v became %+v, %v", m, got, err)
		}
		if r, ok := m.answer(); ok != (k <= summed) || ok && (r.kind != k+2 || r.nonce != m.nonce) {
			t.Errorf("%+v is answered by %+v, %v", m, r, ok)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(message{plain, 1}.bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parse(b)
		if err != nil && !errors.Is(err, errForeign) {
			t.Error(err)
		}
		if err == nil && string(m.bytes()) != string(b) {
			t.Errorf("%x is %+v", b, m)
		}
	})
}
