package bgp

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	berth "github.com/berth-project/berth/cni/internal/bgp"
)

// cell is one row of the matrix: a test that runs against each daemon, or says why it cannot against one.
type cell struct {
	name string
	// slow cells run only where BERTH_CONFORMANCE is set.
	slow   bool
	run    func(t *testing.T, d speakerDaemon)
	cannot map[string]string // daemon: reason
}

// whole says whether everything runs, or the quick part.
func whole() bool { return os.Getenv("BERTH_CONFORMANCE") != "" }

func cells() []cell {
	var all []cell
	all = append(all, sessionCells()...)
	all = append(all, routeCells()...)
	all = append(all, restartCells()...)
	return append(all, failureCells()...)
}

// TestMain lets more tests run at once than there are processors, because what they do is wait.
func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", "10"); err != nil {
		panic(err)
	}
	code := m.Run()
	if bin, err := build(); err == nil {
		_ = os.RemoveAll(filepath.Dir(bin))
	}
	os.Exit(code)
}

// TestInterop runs the matrix and prints it.
func TestInterop(t *testing.T) {
	if !whole() {
		t.Parallel() // the whole attack is too loud a neighbour
	}
	if _, err := build(); err != nil {
		t.Fatal(err)
	}
	names := []string{"BIRD", "FRR"}
	all := cells()
	result := make([]map[string]string, len(all))
	var mu sync.Mutex
	t.Cleanup(func() { printMatrix(t, all, names, result) })
	for i, c := range all {
		result[i] = map[string]string{}
		for _, name := range names {
			if why := c.cannot[name]; why != "" {
				result[i][name] = "cannot: " + why
				continue
			}
			if c.slow && !whole() {
				result[i][name] = "not in the quick part"
				continue
			}
			t.Run(strings.ReplaceAll(c.name, " ", "-")+"/"+name, func(t *testing.T) {
				t.Parallel()
				t.Cleanup(func() {
					mu.Lock()
					defer mu.Unlock()
					result[i][name] = map[bool]string{false: "pass", true: "FAIL"}[t.Failed()]
				})
				d := speakerDaemon(&bird{})
				if name == "FRR" {
					d = &frr{}
				}
				c.run(t, d)
			})
		}
	}
}

func printMatrix(t *testing.T, all []cell, names []string, result []map[string]string) {
	var b strings.Builder
	fmt.Fprintf(&b, "\n%-34s", "BGP, both directions")
	for _, n := range names {
		fmt.Fprintf(&b, "  %-8s", n)
	}
	passed, failed, cannot := 0, 0, 0
	for i, c := range all {
		fmt.Fprintf(&b, "\n%-34s", c.name)
		why := ""
		for _, n := range names {
			r, reason, _ := strings.Cut(result[i][n], ": ")
			if reason != "" {
				why += "  " + n + ": " + reason
			}
			switch r {
			case "pass":
				passed++
			case "cannot":
				cannot++
			case "not in the quick part":
				r = "-"
			default:
				failed++
			}
			fmt.Fprintf(&b, "  %-8s", r)
		}
		b.WriteString(why)
	}
	fmt.Fprintf(&b, "\n%d cells pass, %d fail, %d cannot be (reasons beside them)\n", passed, failed, cannot)
	if whole() {
		fmt.Print(b.String())
		return
	}
	t.Log(b.String())
}

// pair is a lab of two: us, and one far speaker with one session to us.
type pair struct {
	us, at *node
	d      speakerDaemon
	far    far
	config berth.Config
	v6     bool
}

// newPair is prepared for a session over IPv4 between AS 64512 and 64513, or within 64512, and not started.
func newPair(t *testing.T, d speakerDaemon, farASN uint32, v6 bool) *pair {
	t.Helper()
	l := newLab(t, 2)
	p := &pair{us: l[0], at: l[1], d: d, v6: v6}
	ours, theirs, fam := l[0].v4, l[1].v4, berth.IPv4
	if v6 {
		ours, theirs, fam = l[0].v6, l[1].v6, berth.IPv6
	}
	p.far = far{
		at: l[1], asn: farASN,
		sessions: []farSession{{us: ours, local: theirs, asn: 64512, families: []berth.Family{fam}}},
		routes:   []farRoute{{prefix: "10.244.2.0/24"}, {prefix: "fd00:244:2::/64"}},
	}
	p.config = ourConfig(l[0], berth.Peer{Address: theirs, ASN: farASN, ConnectRetry: time.Second, Hold: 9 * time.Second})
	return p
}

func (p *pair) start(t *testing.T) *us {
	t.Helper()
	p.d.start(t, p.far)
	return startUs(t, p.us, p.config, nil)
}

// exchanged waits until each has the other's block of the families of the session.
func (p *pair) exchanged(t *testing.T, u *us) {
	t.Helper()
	for _, f := range p.far.sessions[0].families {
		theirs, ours, nh, back := "10.244.2.0/24", "10.244.1.0/24", p.at.v4, p.us.v4
		if f == berth.IPv6 {
			theirs, ours = "fd00:244:2::/64", "fd00:244:1::/64"
		}
		if p.v6 {
			nh, back = p.at.v6, p.us.v6
		}
		eventually(t, 25*time.Second, u.has(theirs, nh))
		kind := berth.External
		if p.far.asn == p.config.ASN {
			kind = berth.Internal
		}
		if r, _ := u.route(theirs); len(r.Paths) != 1 || r.Paths[0].Kind != kind {
			t.Errorf("want one path of kind %s: %+v", kind, r)
		}
		eventually(t, 25*time.Second, hasFar(p.d, ours, func(l learned) error {
			if l.nextHop != back.String() {
				return fmt.Errorf("%s goes by %q, want %v: %+v", ours, l.nextHop, back, l)
			}
			return nil
		}))
	}
}

// hasFar wants the far speaker to know a prefix, as check says.
func hasFar(d speakerDaemon, prefix string, check func(learned) error) func() error {
	return func() error {
		l, ok, err := d.route(prefix)
		if err != nil || !ok {
			return fmt.Errorf("%s does not know %s (%w)", d.name(), prefix, orNotThere(err))
		}
		if check == nil {
			return nil
		}
		return check(l)
	}
}

func orNotThere(err error) error {
	if err == nil {
		return os.ErrNotExist
	}
	return err
}

func lacksFar(d speakerDaemon, prefix string) func() error {
	return func() error {
		l, ok, err := d.route(prefix)
		if err == nil && ok {
			return fmt.Errorf("%s knows %s: %+v", d.name(), prefix, l)
		}
		return err
	}
}

func want(what string, got, want any) error {
	if fmt.Sprint(got) != fmt.Sprint(want) {
		return fmt.Errorf("%s is %v, want %v", what, got, want)
	}
	return nil
}
