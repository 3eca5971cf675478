package bgp

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	berth "github.com/berth-project/berth/cni/internal/bgp"
)

// bird is BIRD 2.
type bird struct {
	f far
	d *daemon

	since time.Time // of the session, as last shown: BIRD derives it anew each time, and it wanders by a millisecond
}

func (b *bird) name() string          { return "BIRD" }
func (b *bird) socket() string        { return filepath.Join(b.f.at.dir, "bird.ctl") }
func (b *bird) file() string          { return filepath.Join(b.f.at.dir, "bird.conf") }
func (b *bird) crash()                { b.d.kill() }
func (b *bird) write(t testing.TB)    { writeFile(t, b.file(), birdConf(b.f)) }
func (b *bird) protocol(i int) string { return fmt.Sprintf("us%d", i) }

func writeFile(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (b *bird) start(t testing.TB, f far) {
	t.Helper()
	b.f = f
	b.write(t)
	b.resume(t)
}

func (b *bird) resume(t testing.TB) {
	t.Helper()
	args := []string{"/usr/sbin/bird", "-f", "-c", b.file(), "-s", b.socket(), "-P", filepath.Join(b.f.at.dir, "bird.pid")}
	if b.d != nil && b.f.gr > 0 {
		args = append(args, "-R") // recover from a crash: graceful restart
	}
	b.d = b.f.at.start(t, args...)
	eventually(t, 5*time.Second, func() error { _, err := b.ask("show status"); return err })
}

func (b *bird) configure(t testing.TB, f far) {
	t.Helper()
	b.f = f
	b.write(t)
	if out, err := b.ask("configure"); err != nil || !strings.Contains(out, "Reconfig") {
		t.Fatalf("%v %s", err, out)
	}
}

func (b *bird) ask(line string) (string, error) {
	return b.f.at.Exec(append([]string{"/usr/sbin/birdc", "-s", b.socket()}, strings.Fields(line)...)...)
}

func (b *bird) established(a netip.Addr) (bool, string, error) {
	for i, s := range b.f.sessions {
		if s.us != a {
			continue
		}
		out, err := b.ask("show protocols " + b.protocol(i))
		lines := strings.Split(strings.TrimSpace(out), "\n")
		last := strings.Fields(lines[len(lines)-1])
		if err != nil || len(last) < 6 {
			return false, "", err
		}
		since, err := time.Parse("15:04:05.000", last[4])
		if since.Sub(b.since).Abs() > 20*time.Millisecond {
			b.since = since
		}
		return last[5] == "Established", b.since.String(), err
	}
	return false, "", fmt.Errorf("%v is no neighbour", a)
}

var birdAttr = regexp.MustCompile(`BGP\.(\w+): (.*)`)

func (b *bird) route(prefix string) (l learned, ok bool, err error) {
	out, err := b.ask("show route " + prefix + " all")
	if err != nil {
		return l, false, nil //nolint:nilerr // birdc fails where there is no such network
	}
	for _, line := range strings.Split(out, "\n") {
		if strings.Contains(line, "[us") {
			l.paths++
		}
		m := birdAttr.FindStringSubmatch(line)
		if m == nil || l.paths > 1 {
			continue
		}
		v := strings.TrimSpace(m[2])
		switch m[1] {
		case "next_hop":
			l.nextHop, _, _ = strings.Cut(v, " ")
		case "as_path":
			l.asPath = v
		case "community":
			l.community = colons(v)
			l.stale = strings.Contains(v, "(65535,6)")
		case "large_community":
			l.large = colons(v)
		case "originator_id":
			l.originator = v
		case "cluster_list":
			l.clusters = v
		case "med":
			l.med, err = strconv.Atoi(v)
		case "local_pref":
			l.localPref, err = strconv.Atoi(v)
		}
		if err != nil {
			return l, false, err
		}
	}
	return l, l.paths > 0, nil
}

// colons turns "(1,2) (3, 4, 5)" into "1:2 3:4:5".
func colons(s string) string {
	s = strings.ReplaceAll(s, ", ", ":")
	return strings.NewReplacer("(", "", ")", "", ",", ":").Replace(s)
}

func birdConf(f far) string {
	var b strings.Builder
	w := func(format string, a ...any) { fmt.Fprintf(&b, format+"\n", a...) }
	w("log stderr all;\nrouter id 198.51.100.%d;\nprotocol device { scan time 1; }", f.at.n)
	if f.gr > 0 {
		w("graceful restart wait 10;")
	}
	for _, fam := range []berth.Family{berth.IPv4, berth.IPv6} {
		w("protocol static s%s {\n %s;", fam, fam)
		for _, r := range f.routes {
			if berth.FamilyOf(pfx(r.prefix).Addr()) == fam {
				w(" route %s unreachable { %s };", r.prefix, birdRoute(f, r))
			}
		}
		w("}")
		if f.kernel {
			w("protocol kernel k%s { merge paths on; %s { export where source != RTS_STATIC; }; }", fam, fam)
		}
	}
	w("protocol bfd { interface \"*\" { interval 100 ms; multiplier 3; }; neighbor 192.0.2.254; }")
	for i, s := range f.sessions {
		birdSession(w, f, s, i)
	}
	return b.String()
}

func birdRoute(f far, r farRoute) (s string) {
	if r.community != "" {
		s += "bgp_community.add((" + strings.ReplaceAll(r.community, ":", ",") + ")); "
	}
	if r.large != "" {
		s += "bgp_large_community.add((" + strings.ReplaceAll(r.large, ":", ",") + ")); "
	}
	if r.med > 0 {
		s += fmt.Sprintf("bgp_med = %d; ", r.med)
	}
	if r.localPref > 0 {
		s += fmt.Sprintf("bgp_local_pref = %d; ", r.localPref)
	}
	for range r.prepend {
		s += fmt.Sprintf("bgp_path.prepend(%d); ", f.asn)
	}
	return s
}

func birdSession(w func(string, ...any), f far, s farSession, i int) {
	hold := s.hold
	if hold == 0 {
		hold = 9
	}
	w("protocol bgp us%d {\n local %v as %d;\n neighbor %v as %d;\n hold time %d;", i, s.local, f.asn, s.us, s.asn, hold)
	w(" connect delay time 1;\n connect retry time 1;\n error wait time 1,2;\n startup hold time 9;")
	option(w, s.password != "", " password %q;", s.password)
	option(w, s.gtsm == 1, " ttl security on;\n direct;")
	option(w, s.gtsm > 1, " ttl security on;\n multihop %d;", s.gtsm)
	option(w, s.multihop > 0, " multihop %d;", s.multihop)
	option(w, s.rrClient, " rr client;")
	option(w, s.cluster != "", " rr cluster id %s;", s.cluster)
	option(w, s.bfd, " bfd on;")
	option(w, s.passive, " passive on;")
	option(w, f.gr > 0, " graceful restart on;\n graceful restart time %d;", f.gr)
	option(w, f.gr == 0, " graceful restart off;")
	option(w, f.llgr > 0, " long lived graceful restart on;\n long lived stale time %d;", f.llgr)
	for _, fam := range s.families {
		w(" %s {\n  import all;\n  export where source = RTS_STATIC || source = RTS_BGP;\n  next hop %s;", fam, map[bool]string{true: "keep", false: "self"}[s.rrClient])
		option(w, s.extNH && fam == berth.IPv4, "  extended next hop on;")
		option(w, s.addPaths != "", "  add paths %s;", map[string]string{"rx": "rx", "tx": "tx", "both": "on"}[s.addPaths])
		option(w, s.limit > 0, "  import limit %d action disable;", s.limit)
		w(" };")
	}
	w("}")
}

func option(w func(string, ...any), on bool, format string, a ...any) {
	if on {
		w(format, a...)
	}
}
