package nlwire_test

import (
	"testing"

	"github.com/berth-project/berth/cni/internal/nlwire"
)

func TestRoundTrip(t *testing.T) {
	msg := nlwire.New(7, 1, []byte{1, 2, 3}).Str(1, "eth0").Nest(2, func(m *nlwire.Builder) { m.U8(3, 9).U32(4, 77) }).Done()
	nlwire.SetSeq(msg, 42)
	ms, err := nlwire.Split(append(msg, msg...))
	if err != nil || len(ms) != 2 || ms[1].Seq != 42 || ms[0].Type != 7 {
		t.Fatalf("%+v, %v", ms, err)
	}
	seen := 0
	nlwire.Attrs(ms[1].Body[4:], func(typ uint16, v []byte) {
		switch typ {
		case 1:
			if nlwire.Str(v) == "eth0" {
				seen++
			}
		case 2:
			nlwire.Attrs(v, func(typ uint16, v []byte) {
				if typ == 3 && v[0] == 9 || typ == 4 && nlwire.U32(v) == 77 {
					seen++
				}
			})
		}
	})
	if seen != 3 {
		t.Errorf("%d of 3 attributes", seen)
	}
}

func FuzzSplit(f *testing.F) {
	f.Add(nlwire.New(7, 1, []byte{1, 2, 3, 4}).Str(1, "eth0").Done())
	f.Fuzz(func(t *testing.T, b []byte) {
		ms, err := nlwire.Split(b)
		if err != nil {
			return
		}
		for _, m := range ms {
			_ = m.Errno()
			nlwire.Attrs(m.Body, func(_ uint16, v []byte) { nlwire.Attrs(v, func(uint16, []byte) {}) })
		}
	})
}
