package channel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"github.com/berth-project/berth/cni/internal/bgp"
)

func ip(s string) netip.Addr    { return netip.MustParseAddr(s) }
func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func report() *ToParent {
	return &ToParent{Routes: &Routes{
		Changed:   []bgp.Route{{Prefix: pfx("10.244.1.0/24"), Paths: []bgp.Path{{NextHop: ip("fe80::1%eth0"), Peer: ip("10.0.0.2"), Kind: bgp.Internal}}}},
		Withdrawn: []netip.Prefix{pfx("fd00::/64")},
	}}
}

func TestRoundTrip(t *testing.T) {
	c := bgp.Config{ASN: 64512, RouterID: ip("1.1.1.1"), Peers: []bgp.Peer{
		{Address: ip("10.0.0.2"), ASN: 64512, Password: bgp.NewSecret("canary")},
		{Address: ip("fe80::1%eth0"), ASN: 64513, Password: bgp.NewSecret("second")},
	}}
	var b bytes.Buffer
	if err := Write(&b, ToChild{Set: NewSet(7, c, true)}, MaxToChild); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(b.String(), "canary"); n != 1 {
		t.Errorf("the password stands %d times in %s", n, &b)
	}
	var got ToChild
	if err := Read(&b, &got, MaxToChild); err != nil {
		t.Fatal(err)
	}
	if w := got.Set.Whole(); !reflect.DeepEqual(w, c) || got.Set.ID != 7 || !got.Set.Restarting {
		t.Errorf("%+v\n%+v", w, c)
	}
	if err := Read(&b, &got, MaxToChild); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
	if err := Write(&b, report(), MaxToParent); err != nil {
		t.Fatal(err)
	}
	var back ToParent
	if err := Read(&b, &back, MaxToParent); err != nil || !reflect.DeepEqual(&back, report()) {
		t.Errorf("%+v %v", back, err)
	}
	if err := CheckReport(&back); err != nil {
		t.Error(err)
	}
}

func frame(body string) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
}

func TestReadRefuses(t *testing.T) {
	for name, in := range map[string][]byte{
		"more than the bound":  {0xff, 0xff, 0xff, 0xff},
		"a torn head":          {0, 0},
		"a torn body":          frame("{}")[:5],
		"an unknown key":       frame(`{"exec":"x"}`),
		"something behind":     frame(`{}{}`),
		"no object":            frame(`[1]`),
		"a prefix that is not": frame(`{"routes":{"withdrawn":["10.0.0.0/33"]}}`),
	} {
		if err := Read(bytes.NewReader(in), new(ToParent), MaxToParent); err == nil || errors.Is(err, io.EOF) && err == io.EOF { //nolint:errorlint // the bare one is the clean end
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := Write(io.Discard, strings.Repeat("x", 100), 99); !errors.Is(err, ErrTooLong) {
		t.Errorf("writes beyond the bound: %v", err)
	}
}

// TestReadAllocatesWhatCame is about a head that promises much and a body that does not come.
func TestReadAllocatesWhatCame(t *testing.T) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 50 {
		if err := Read(bytes.NewReader([]byte{0, 0xff, 0xff, 0xff, '{'}), new(ToChild), MaxToChild); err == nil {
			t.Fatal("it is taken")
		}
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 4<<20 {
		t.Errorf("%d bytes allocated for 50 bytes that came", n)
	}
}

func TestCheckReport(t *testing.T) {
	for want, change := range map[string]func(*ToParent){
		"2 kinds":               func(m *ToParent) { m.Synced = &Synced{} },
		"0 kinds":               func(m *ToParent) { m.Routes = nil },
		"canonical":             func(m *ToParent) { m.Routes.Changed[0].Prefix = netip.MustParsePrefix("10.244.1.1/24") },
		"withdrawn":             func(m *ToParent) { m.Routes.Withdrawn[0] = netip.Prefix{} },
		"0 paths":               func(m *ToParent) { m.Routes.Changed[0].Paths = nil },
		"65 paths":              func(m *ToParent) { m.Routes.Changed[0].Paths = make([]bgp.Path, 65) },
		"2001 routes":           func(m *ToParent) { m.Routes.Withdrawn = make([]netip.Prefix, 2000) },
		"2001 peers are synced": func(m *ToParent) { *m = ToParent{Synced: &Synced{Peers: make([]netip.Addr, 2001)}} },
		"2001 peers":            func(m *ToParent) { *m = ToParent{Peers: &Peers{Peers: make([]bgp.PeerStatus, 2001)}} },
		`in state "up�"`: func(m *ToParent) {
			*m = ToParent{Peers: &Peers{Peers: []bgp.PeerStatus{{State: "up\x1b"}}}}
		},
	} {
		m := report()
		change(m)
		if err := CheckReport(m); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
	m := &ToParent{Peers: &Peers{Peers: []bgp.PeerStatus{{State: bgp.SessionIdle, LastError: "\x1b[2J" + strings.Repeat("é", 300)}}}}
	if err := CheckReport(m); err != nil || strings.Contains(m.Peers.Peers[0].LastError, "\x1b") || len(m.Peers.Peers[0].LastError) > 3*maxText {
		t.Errorf("%v %q", err, m.Peers.Peers[0].LastError)
	}
}

// FuzzReport feeds the parent's reader what a child that is under someone else's control could send.
func FuzzReport(f *testing.F) {
	var b bytes.Buffer
	for _, m := range []*ToParent{
		report(),
		{Hello: &Hello{Version: 1}},
		{Applied: &Applied{ID: 1, Error: "x"}},
		{Synced: &Synced{Peers: []netip.Addr{ip("10.0.0.2")}}},
		{Peers: &Peers{Peers: []bgp.PeerStatus{{Address: ip("10.0.0.2"), State: bgp.SessionIdle}}}},
	} {
		b.Reset()
		if err := Write(&b, m, MaxToParent); err != nil {
			f.Fatal(err)
		}
		f.Add(bytes.Clone(b.Bytes()))
	}
	f.Add([]byte{0, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		for {
			var m ToParent
			if Read(r, &m, MaxToParent) != nil {
				return
			}
			if CheckReport(&m) != nil {
				continue
			}
			checkAccepted(t, &m)
		}
	})
}

// checkAccepted says what the parent relies on.
func checkAccepted(t *testing.T, m *ToParent) {
	t.Helper()
	if m.Routes == nil {
		return
	}
	for _, r := range m.Routes.Changed {
		if !r.Prefix.IsValid() || r.Prefix != r.Prefix.Masked() || len(r.Paths) == 0 {
			t.Fatalf("accepted %v", r)
		}
	}
	var b bytes.Buffer
	if err := Write(&b, m, 8*MaxToParent); err != nil {
		t.Fatalf("what was accepted cannot be written: %v", err)
	}
}
