package bgp

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	berth "github.com/berth-project/berth/cni/internal/bgp"
)

// TestConfined looks from outside at a child that serves a session with a password: who it is, what it may do, where it
// listens, and where the password is not.
func TestConfined(t *testing.T) {
	t.Parallel()
	p := newPair(t, &bird{}, 64513, false)
	p.far.sessions[0].password, p.config.Peers[0].Password = canary, berth.NewSecret(canary)
	u := p.start(t)
	p.exchanged(t, u)
	proc := fmt.Sprintf("/proc/%d/", child(t, p.us))
	status := read(t, proc+"status")
	for _, want := range []string{
		fmt.Sprintf("Uid:\t%d\t%d\t%d\t%d\n", childUser, childUser, childUser, childUser), "Groups:\t \n", "NoNewPrivs:\t1\n",
		"CapPrm:\t0000000000000400\n", "CapEff:\t0000000000000400\n", "CapInh:\t0000000000000400\n",
	} {
		if !strings.Contains(status, want) {
			t.Errorf("want %q in\n%s", want, status)
		}
	}
	if limits := read(t, proc+"limits"); !strings.Contains(limits, "Max core file size        0                    0 ") {
		t.Errorf("it may leave a core file, with passwords in it:\n%s", limits)
	}
	for _, f := range []string{"environ", "cmdline", "comm"} {
		if s := read(t, proc+f); strings.Contains(s, canary) || f == "environ" && s != "" {
			t.Errorf("%s: %q", f, s)
		}
	}
	// The directory of a process that is not dumpable is root's (proc(5)).
	var st unix.Stat_t
	if err := unix.Stat(proc+"mem", &st); err != nil || st.Uid != 0 {
		t.Errorf("others of its user can read its memory: owner %d, %v", st.Uid, err)
	}
	want := []string{netip.AddrPortFrom(p.us.v4, 179).String(), netip.AddrPortFrom(p.us.v6, 179).String()}
	if got := listeners(t, proc); !slices.Equal(got, want) {
		t.Errorf("it listens on %v, want %v", got, want)
	}
	u.logLacks(t, canary)
	// With BFD there is one more, for as long as a peer has it.
	c := p.config
	c.Peers = []berth.Peer{p.config.Peers[0]}
	c.Peers[0].BFD = &berth.BFD{Transmit: time.Second, Receive: time.Second, Multiplier: 3}
	if err := u.Set(c); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, func() error { return wantLen(listeners(t, proc), 3) })
	if err := u.Set(p.config); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, func() error { return wantLen(listeners(t, proc), 2) })
}

func wantLen(l []string, n int) error {
	if len(l) != n {
		return fmt.Errorf("%d listeners %v, want %d", len(l), l, n)
	}
	return nil
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// listeners are the TCP sockets that listen and the UDP sockets without a peer in a process's network namespace, in
// which nothing else listens.
func listeners(t *testing.T, proc string) (all []string) {
	t.Helper()
	for file, state := range map[string]string{"tcp": "0A", "tcp6": "0A", "udp": "07", "udp6": "07", "raw": "07", "raw6": "07"} {
		for _, line := range strings.Split(read(t, proc+"net/"+file), "\n")[1:] {
			f := strings.Fields(line)
			if len(f) < 4 || f[3] != state {
				continue
			}
			addr, port, _ := strings.Cut(f[1], ":")
			b, err := hex.DecodeString(addr)
			if err != nil {
				t.Fatal(err)
			}
			for i := 0; i < len(b); i += 4 { // words in the machine's order
				slices.Reverse(b[i : i+4])
			}
			var n uint16
			if _, err := fmt.Sscanf(port, "%X", &n); err != nil {
				t.Fatal(err)
			}
			a, _ := netip.AddrFromSlice(b)
			all = append(all, netip.AddrPortFrom(a, n).String())
		}
	}
	slices.Sort(all)
	return all
}
