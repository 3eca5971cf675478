package hostlocal

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func open(t testing.TB, dir, cache string) *Dir {
	t.Helper()
	d, err := Open(dir, cache)
	if err != nil {
		t.Fatal(err)
	}
	d.Now, d.Cooldown = 1000, 130
	return d
}

func set(cidr string) RangeSet {
	s := netip.MustParsePrefix(cidr)
	gw := s.Addr().Next()
	end := netip.MustParseAddr("10.0.0.6")
	return RangeSet{{Subnet: s, Start: gw, End: end, Gateway: gw}}
}

func take(t *testing.T, d *Dir, s RangeSet, h Holder) netip.Addr {
	t.Helper()
	for {
		a, _, err := d.Pick(s)
		if err != nil {
			return netip.Addr{}
		}
		ok, err := d.Claim(a, h)
		if err != nil {
			t.Fatal(err)
		}
		if ok {
			return a
		}
	}
}

// TestSharesWithUpstream lets upstream's plugin, which knows nothing of our pools, take and release in between.
func TestSharesWithUpstream(t *testing.T) {
	dir, cache := t.TempDir(), t.TempDir()
	d := open(t, dir, cache)
	s := set("10.0.0.0/29")
	first := take(t, d, s, Holder{"a", "eth0"})
	if first.String() != "10.0.0.2" {
		t.Errorf("first: %s", first)
	}
	// Upstream takes .3 and .4 behind our back.
	for _, ip := range []string{"10.0.0.3", "10.0.0.4"} {
		if err := os.WriteFile(filepath.Join(dir, ip), []byte("up\r\neth0"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got := map[netip.Addr]bool{}
	for i := range 2 {
		got[take(t, d, s, Holder{fmt.Sprint("b", i), "eth0"})] = true
	}
	if !got[netip.MustParseAddr("10.0.0.5")] || !got[netip.MustParseAddr("10.0.0.6")] {
		t.Errorf("got %v", got)
	}
	if a := take(t, d, s, Holder{"full", "eth0"}); a.IsValid() {
		t.Errorf("a sixth address: %s", a)
	}
	// Upstream releases .3: the pool thinks it taken, the directory does not.
	if err := os.Remove(filepath.Join(dir, "10.0.0.3")); err != nil {
		t.Fatal(err)
	}
	if a := take(t, d, s, Holder{"c", "eth0"}); a.String() != "10.0.0.3" {
		t.Errorf("after upstream's release: %s", a)
	}
	if err := d.ReleaseAll(Holder{"up", "eth0"}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "10.0.0.4")); err == nil {
		t.Error("upstream's lease cannot be released")
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestForgetsAnotherBoot keeps leases of this boot and of addresses that are alive, and forgets others.
func TestForgetsAnotherBoot(t *testing.T) {
	dir, cache := t.TempDir(), t.TempDir()
	old := time.Unix(1e9, 0)
	for _, f := range []struct {
		ip  string
		old bool
	}{{"10.0.0.2", true}, {"10.0.0.3", false}, {"127.0.0.1", true}} {
		path := filepath.Join(dir, f.ip)
		if err := os.WriteFile(path, []byte("x\r\neth0"), 0o600); err != nil {
			t.Fatal(err)
		}
		if f.old {
			if err := os.Chtimes(path, old, old); err != nil {
				t.Fatal(err)
			}
		}
	}
	d := open(t, dir, cache)
	defer d.Close() //nolint:errcheck // a test's
	if a := take(t, d, set("10.0.0.0/29"), Holder{"a", "eth0"}); a.String() != "10.0.0.2" {
		t.Errorf("took %s, want the address of the other boot", a)
	}
	for _, ip := range []string{"10.0.0.3", "127.0.0.1"} {
		if _, err := os.Stat(filepath.Join(dir, ip)); err != nil {
			t.Errorf("%s is gone: %v", ip, err)
		}
	}
}

// FuzzDirectory puts arbitrary files where leases and pools are: no address that has a file is given out, and nothing
// panics.
func FuzzDirectory(f *testing.F) {
	f.Add("10.0.0.2", []byte("a\r\neth0"), []byte(nil))
	f.Add("last_reserved_ip.0", []byte("10.0.0.4"), []byte("BERTHPL1"))
	f.Add("10.0.0.3", []byte{0}, make([]byte, 8192))
	f.Fuzz(func(t *testing.T, name string, lease, pool []byte) {
		dir, cache := t.TempDir(), t.TempDir()
		if name == filepath.Base(name) && name != "." && name != ".." && name != "lock" {
			_ = os.WriteFile(filepath.Join(dir, name), lease, 0o600) // names that cannot be are not
		}
		if pool != nil {
			if err := os.WriteFile(filepath.Join(cache, "10.0.0.0_29"), pool, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		d := open(t, dir, cache)
		defer d.Close() //nolint:errcheck // a test's
		a := take(t, d, set("10.0.0.0/29"), Holder{"new", "eth0"})
		if a.String() == name {
			t.Errorf("%s was given out twice", a)
		}
	})
}

// TestReleaseIsTheHoldersAlone: a DEL that comes late takes nothing from whoever has the address by then.
func TestReleaseIsTheHoldersAlone(t *testing.T) {
	d := open(t, t.TempDir(), t.TempDir())
	a := take(t, d, set("10.0.0.0/29"), Holder{"a", "eth0"})
	for _, h := range []Holder{{"b", "eth0"}, {"a", "eth1"}, {"", ""}} {
		if err := d.Release(a, h); err != nil {
			t.Error(err)
		}
		if mine, err := d.Holds(a, Holder{"a", "eth0"}); err != nil || !mine {
			t.Fatalf("%v released the address of another, %v", h, err)
		}
	}
	if ok, err := d.Claim(a, Holder{"b", "eth0"}); ok || err != nil {
		t.Errorf("claimed: %v %v", ok, err)
	}
	if err := d.Release(a, Holder{"a", "eth0"}); err != nil {
		t.Error(err)
	}
	if mine, err := d.Holds(a, Holder{"a", "eth0"}); err != nil || mine {
		t.Errorf("its own holder: %v %v", mine, err)
	}
}

// TestLocksOutUpstream: while the directory is open its lock is held, and whoever wants it waits, as upstream's
// processes do.
func TestLocksOutUpstream(t *testing.T) {
	dir := t.TempDir()
	d := open(t, dir, t.TempDir())
	other, err := os.Open(filepath.Join(dir, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()                                                                         //nolint:errcheck // read only
	if err := unix.Flock(int(other.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != unix.EWOULDBLOCK { //nolint:errorlint // an errno
		t.Errorf("somebody else's lock: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(other.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Errorf("after the end: %v", err)
	}
}
