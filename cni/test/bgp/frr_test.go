package bgp

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	berth "github.com/berth-project/berth/cni/internal/bgp"
)

// frr is FRR's bgpd, with zebra, without which no next hop is valid, and bfdd where it is asked for.
type frr struct {
	f         far
	zebra, bd *daemon
	bgpd      *daemon
}

func (r *frr) name() string       { return "FRR" }
func (r *frr) in(n string) string { return filepath.Join(r.f.at.dir, n) }
func (r *frr) crash()             { r.bgpd.kill() }

func (r *frr) start(t testing.TB, f far) {
	t.Helper()
	r.f = f
	// zebra and bgpd give up root for the user that the package made; their directory must be that user's.
	dir, err := os.MkdirTemp("", "berth-frr-test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	r.f.at.dir = dir
	u, err := user.Lookup("frr")
	if err != nil {
		t.Fatal(err)
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, uid, -1); err != nil {
		t.Fatal(err)
	}
	writeFile(t, r.in("zebra.conf"), "log file "+r.in("zebra.log")+"\nip nht resolve-via-default\n")
	r.zebra = f.at.start(t, r.args("zebra")...)
	eventually(t, 10*time.Second, func() error { _, err := os.Stat(r.in("zserv")); return err })
	for _, s := range f.sessions {
		if s.bfd && r.bd == nil {
			writeFile(t, r.in("bfdd.conf"), "bfd\n profile fast\n  receive-interval 100\n  transmit-interval 100\n  detect-multiplier 3\n")
			r.bd = f.at.start(t, append(r.args("bfdd"), "--bfdctl", r.in("bfdctl"))...)
		}
	}
	r.resume(t)
}

func (r *frr) args(name string) []string {
	return []string{
		"/usr/lib/frr/" + name, "-f", r.in(name + ".conf"), "-z", r.in("zserv"), "-i", r.in(name + ".pid"),
		"--vty_socket", r.f.at.dir, "-u", "frr", "-g", "frr", "-P", "0",
	}
}

func (r *frr) resume(t testing.TB) {
	t.Helper()
	writeFile(t, r.in("bgpd.conf"), frrConf(r.f))
	args := r.args("bgpd")
	args[len(args)-1] = "0"
	r.bgpd = r.f.at.start(t, append(args, "-p", "179")...)
	eventually(t, 10*time.Second, func() error { _, err := r.ask("show bgp summary"); return err })
}

func (r *frr) configure(t testing.TB, f far) {
	t.Helper()
	t.Fatal("FRR is not reconfigured by these tests")
}

func (r *frr) ask(line string) (string, error) {
	return r.f.at.Exec("/usr/bin/vtysh", "--vty_socket", r.f.at.dir, "-d", "bgpd", "-c", line)
}

func (r *frr) established(a netip.Addr) (bool, string, error) {
	out, err := r.ask(fmt.Sprintf("show bgp neighbors %v json", a))
	if err != nil {
		return false, "", err
	}
	var m map[string]struct {
		BgpState    string `json:"bgpState"`
		Established int    `json:"connectionsEstablished"`
	}
	if err := json.Unmarshal([]byte(out), &m); err != nil {
		return false, "", fmt.Errorf("%w: %s", err, out)
	}
	n := m[a.String()]
	return n.BgpState == "Established", fmt.Sprint(n.Established), nil
}

type frrPath struct {
	ASPath struct {
		String string `json:"string"`
	} `json:"aspath"`
	Community struct {
		String string `json:"string"`
	} `json:"community"`
	Large struct {
		String string `json:"string"`
	} `json:"largeCommunity"`
	Cluster struct {
		List []string `json:"list"`
	} `json:"clusterList"`
	Originator string `json:"originatorId"`
	MED        int    `json:"metric"`
	LocalPref  int    `json:"locPrf"`
	Stale      bool   `json:"stale"`
	NextHops   []struct {
		IP    string `json:"ip"`
		Scope string `json:"scope"`
	} `json:"nexthops"`
}

func (r *frr) route(prefix string) (l learned, ok bool, err error) {
	fam := "ipv4"
	if pfx(prefix).Addr().Is6() {
		fam = "ipv6"
	}
	out, err := r.ask(fmt.Sprintf("show bgp %s unicast %s json", fam, prefix))
	if err != nil {
		return l, false, err
	}
	var m struct {
		Paths []frrPath `json:"paths"`
	}
	if err := json.Unmarshal([]byte(out), &m); err != nil {
		return l, false, fmt.Errorf("%w: %s", err, out)
	}
	if len(m.Paths) == 0 {
		return l, false, nil
	}
	p := m.Paths[0]
	l = learned{
		asPath: p.ASPath.String, community: p.Community.String, large: p.Large.String, originator: p.Originator,
		clusters: strings.Join(p.Cluster.List, " "), med: p.MED, localPref: p.LocalPref, paths: len(m.Paths), stale: p.Stale,
	}
	for _, n := range p.NextHops {
		if n.Scope != "link-local" {
			l.nextHop = n.IP
		}
	}
	return l, true, nil
}

func frrConf(f far) string {
	var b strings.Builder
	w := func(format string, a ...any) { fmt.Fprintf(&b, format+"\n", a...) }
	w("log file %s/bgpd.log\nhostname far", f.at.dir)
	for i, r := range f.routes {
		frrRouteMap(w, f, r, i)
	}
	w("router bgp %d\n bgp router-id 198.51.100.%d\n no bgp ebgp-requires-policy\n no bgp default ipv4-unicast\n no bgp network import-check", f.asn, f.at.n)
	w(" bgp bestpath as-path multipath-relax\n timers bgp 3 9")
	option(w, f.gr > 0, " bgp graceful-restart\n bgp graceful-restart restart-time %d\n bgp graceful-restart preserve-fw-state\n bgp graceful-restart select-defer-time 5", f.gr)
	option(w, f.llgr > 0, " bgp long-lived-graceful-restart stale-time %d", f.llgr)
	for _, s := range f.sessions {
		option(w, s.cluster != "", " bgp cluster-id %s", s.cluster)
		frrSession(w, s)
	}
	for _, fam := range []berth.Family{berth.IPv4, berth.IPv6} {
		w(" address-family %s unicast", fam)
		for i, r := range f.routes {
			option(w, berth.FamilyOf(pfx(r.prefix).Addr()) == fam, "  network %s route-map R%d", r.prefix, i)
		}
		for _, s := range f.sessions {
			for _, x := range s.families {
				if x == fam {
					w("  neighbor %v activate", s.us)
					option(w, s.rrClient, "  neighbor %v route-reflector-client", s.us)
					option(w, s.addPaths == "tx" || s.addPaths == "both", "  neighbor %v addpath-tx-all-paths", s.us)
					option(w, s.addPaths == "tx", "  neighbor %v disable-addpath-rx", s.us)
					option(w, s.limit > 0, "  neighbor %v maximum-prefix %d", s.us, s.limit)
				}
			}
		}
		w(" exit-address-family")
	}
	return b.String()
}

func frrRouteMap(w func(string, ...any), f far, r farRoute, i int) {
	w("route-map R%d permit 10", i)
	option(w, r.community != "", " set community %s", r.community)
	option(w, r.large != "", " set large-community %s", r.large)
	option(w, r.med > 0, " set metric %d", r.med)
	option(w, r.localPref > 0, " set local-preference %d", r.localPref)
	option(w, r.prepend > 0, " set as-path prepend%s", strings.Repeat(fmt.Sprintf(" %d", f.asn), r.prepend))
	w("exit")
}

func frrSession(w func(string, ...any), s farSession) {
	w(" neighbor %v remote-as %d\n neighbor %v update-source %v\n neighbor %v timers connect 1\n neighbor %v advertisement-interval 0", s.us, s.asn, s.us, s.local, s.us, s.us)
	hold := s.hold
	if hold == 0 {
		hold = 9
	}
	w(" neighbor %v timers %d %d", s.us, max(1, hold/3), hold)
	option(w, s.password != "", " neighbor %v password %s", s.us, s.password)
	option(w, s.gtsm > 0, " neighbor %v ttl-security hops %d", s.us, s.gtsm)
	option(w, s.multihop > 0, " neighbor %v ebgp-multihop %d", s.us, s.multihop)
	option(w, s.extNH, " neighbor %v capability extended-nexthop", s.us)
	option(w, s.bfd, " neighbor %v bfd\n neighbor %v bfd profile fast", s.us, s.us)
	option(w, s.passive, " neighbor %v passive", s.us)
}
