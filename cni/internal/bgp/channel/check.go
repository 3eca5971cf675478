package channel

import (
	"fmt"
	"net/netip"
	"strings"
	"unicode"

	"github.com/berth-project/berth/cni/internal/bgp"
)

// maxText bounds the strings that are shown to people.
const maxText = 256

// CheckReport says why m cannot be a report of an honest child. It looks at shapes only, which no peer can bring about:
// whether a route may be taken is Config.Admits and Path.Plausible, and one that may not is no reason to end the child. What is shown to people is made printable in place.
func CheckReport(m *ToParent) error {
	set := 0
	for _, is := range []bool{m.Hello != nil, m.Applied != nil, m.Routes != nil, m.Synced != nil, m.Peers != nil} {
		if is {
			set++
		}
	}
	switch {
	case set != 1:
		return fmt.Errorf("a report of %d kinds, want one", set)
	case m.Hello != nil:
		m.Hello.Program = printable(m.Hello.Program)
	case m.Applied != nil:
		m.Applied.Error = printable(m.Applied.Error)
	case m.Routes != nil:
		return checkRoutes(m.Routes)
	case m.Synced != nil && len(m.Synced.Peers) > bgp.MaxPeers:
		return fmt.Errorf("%d peers are synced, at most %d", len(m.Synced.Peers), bgp.MaxPeers)
	case m.Peers != nil:
		return checkPeers(m.Peers)
	}
	return nil
}

func checkRoutes(r *Routes) error {
	if n := len(r.Changed) + len(r.Withdrawn); n > MaxBatch {
		return fmt.Errorf("%d routes, at most %d", n, MaxBatch)
	}
	for _, p := range r.Withdrawn {
		if !canonical(p) {
			return fmt.Errorf("withdrawn %v is no prefix in canonical form", p)
		}
	}
	for _, x := range r.Changed {
		if !canonical(x.Prefix) {
			return fmt.Errorf("%v is no prefix in canonical form", x.Prefix)
		}
		if len(x.Paths) == 0 || len(x.Paths) > bgp.MaxPathsLimit {
			return fmt.Errorf("%v has %d paths, want 1–%d", x.Prefix, len(x.Paths), bgp.MaxPathsLimit)
		}
	}
	return nil
}

func checkPeers(p *Peers) error {
	if len(p.Peers) > bgp.MaxPeers {
		return fmt.Errorf("%d peers, at most %d", len(p.Peers), bgp.MaxPeers)
	}
	for i := range p.Peers {
		s := &p.Peers[i]
		s.Name, s.LastError, s.BFD = printable(s.Name), printable(s.LastError), printable(s.BFD)
		switch s.State {
		case bgp.SessionIdle, bgp.SessionConnect, bgp.SessionActive, bgp.SessionOpenSent, bgp.SessionOpenConfirm, bgp.SessionEstablished, bgp.SessionOverLimit:
		default:
			return fmt.Errorf("%v is in state %q", s.Address, printable(string(s.State)))
		}
	}
	return nil
}

func canonical(p netip.Prefix) bool { return p.IsValid() && p == p.Masked() && !p.Addr().Is4In6() }

// printable cuts s to maxText bytes and replaces what is no graphic character: it may come from a peer's
// NOTIFICATION (RFC 9003), and ends on a terminal.
func printable(s string) string {
	if len(s) > maxText {
		s = s[:maxText]
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsGraphic(r) {
			return r
		}
		return '�'
	}, strings.ToValidUTF8(s, "�"))
}
