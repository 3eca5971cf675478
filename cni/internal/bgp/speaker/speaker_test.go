package speaker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/cni/internal/bgp"
	"github.com/berth-project/berth/cni/internal/bgp/channel"
)

// TestMain is also every child of these tests: a copy of this program whose file's name says how it behaves, because
// a child gets neither arguments nor an environment.
func TestMain(m *testing.M) {
	exe, err := os.Readlink("/proc/self/exe")
	if name, ok := strings.CutPrefix(filepath.Base(exe), "child-"); err == nil && ok {
		if err := children()[name](); err != nil {
			fmt.Fprintln(os.Stderr, "panic: "+err.Error())
			os.Exit(2)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

const uid = 64178

// children are honest and other ones.
func children() map[string]func() error {
	hello := &channel.ToParent{Hello: &channel.Hello{Version: channel.Version, Program: "test"}}
	learned := &channel.ToParent{Routes: &channel.Routes{Changed: []bgp.Route{route("10.244.1.0/24", "10.0.0.2")}}}
	// says writes what it is given after the first order, and then stays until the socket ends.
	says := func(what ...*channel.ToParent) func() error {
		return func() error {
			c, order, err := begin(hello)
			if err != nil {
				return err
			}
			what = append([]*channel.ToParent{{Applied: &channel.Applied{ID: order.Set.ID}}}, what...)
			for _, m := range what {
				if err := channel.Write(c, m, channel.MaxToParent); err != nil {
					return err
				}
			}
			for {
				var o channel.ToChild
				if err := channel.Read(c, &o, channel.MaxToChild); err != nil || o.Stop != nil {
					return nil //nolint:nilerr // the agent is gone
				}
			}
		}
	}
	return map[string]func() error{
		"honest":       says(learned),
		"old":          func() error { _, _, err := begin(&channel.ToParent{Hello: &channel.Hello{Version: 99}}); return err },
		"mute":         func() error { return errors.New("out of ideas") },
		"liar":         says(&channel.ToParent{Routes: &channel.Routes{Changed: []bgp.Route{route("0.0.0.0/0", "10.0.0.2"), route("192.0.2.0/24", "10.0.0.2"), route("10.244.1.0/24", "10.0.0.66")}}}, learned),
		"vandal":       says(&channel.ToParent{Routes: &channel.Routes{Changed: []bgp.Route{{Prefix: pfx("10.244.1.0/24")}}}}),
		"flood":        flood,
		"nameless":     says(learned, &channel.ToParent{Peers: &channel.Peers{Peers: []bgp.PeerStatus{{Address: ip("10.0.0.66"), State: bgp.SessionEstablished}, {Address: ip("10.0.0.2"), Name: "\x1b[2J", State: bgp.SessionEstablished}}}}),
		"introspector": introspect,
		"babbler":      babble,
	}
}

func begin(hello *channel.ToParent) (net.Conn, channel.ToChild, error) {
	c, err := net.FileConn(os.NewFile(3, "agent"))
	if err != nil {
		return nil, channel.ToChild{}, err
	}
	if err := channel.Write(c, hello, channel.MaxToParent); err != nil {
		return nil, channel.ToChild{}, err
	}
	var o channel.ToChild
	return c, o, channel.Read(c, &o, channel.MaxToChild)
}

// flood promises a message of 4 GiB and sends zeros for ever.
func flood() error {
	c, err := net.FileConn(os.NewFile(3, "agent"))
	if err != nil {
		return err
	}
	for b := []byte(strings.Repeat("\xff", 1<<16)); err == nil; {
		_, err = c.Write(b)
	}
	return err
}

// babble says much, and in the end why it dies.
func babble() error {
	for i := range 5000 {
		fmt.Fprintf(os.Stderr, "line %d of \x1b[31mmany\n", i)
	}
	return errors.New("enough")
}

// introspect reports, as its last words, what it can do and see.
func introspect() error {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	var lines []string
	for _, l := range strings.Split(string(status), "\n") {
		if k, v, _ := strings.Cut(l, ":"); k == "Uid" || k == "Gid" || k == "Groups" || strings.HasPrefix(k, "Cap") {
			lines = append(lines, k+"="+strings.Join(strings.Fields(v), ","))
		}
	}
	var open []string // but for what Go's own runtime opens: epoll, and its cgroup's limits
	for _, fd := range fds {
		if to, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && !strings.HasPrefix(to, "anon_inode:") && !strings.HasPrefix(to, "/proc/") && !strings.HasPrefix(to, "/sys/fs/cgroup") {
			to, _, _ = strings.Cut(to, ":")
			open = append(open, to)
		}
	}
	return fmt.Errorf("env=%d args=%d fds=%v %s", len(os.Environ()), len(os.Args), open, strings.Join(lines, " "))
}

// run starts a Speaker with that child until the test ends.
func run(t *testing.T, name string, log io.Writer) *Speaker {
	t.Helper()
	dir, err := os.MkdirTemp("", "berth-speaker-test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "child-"+name)
	b, err := os.ReadFile(exe)
	if err == nil {
		err = errors.Join(os.Chmod(dir, 0o755), os.WriteFile(program, b, 0o755)) //nolint:gosec // a program
	}
	if err != nil {
		t.Fatal(err)
	}
	s := New(Options{Program: program, UID: uid, GID: uid, Log: slog.New(slog.NewTextHandler(log, nil))})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(2 * patience):
			t.Error("Run does not end")
		}
	})
	return s
}

func until(t *testing.T, s *Speaker, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !is(); {
		select {
		case <-s.Changed():
		case <-time.After(100 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %+v %+v", what, s.Status(), s.Routes())
		}
	}
}

func shown(s *Speaker) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return show(s.table)
}

func TestHonestChild(t *testing.T) {
	s := run(t, "honest", io.Discard)
	if err := s.Set(config()); err != nil {
		t.Fatal(err)
	}
	until(t, s, "it learns", func() bool { return shown(s) == "10.244.1.0/24=2" && s.Status().Running })
	if err := s.Set(bgp.Config{ASN: 23456}); err == nil {
		t.Error("a configuration that is not valid is taken")
	}
	if err := s.Set(bgp.Config{}); err != nil {
		t.Fatal(err)
	}
	until(t, s, "BGP is turned off", func() bool { return shown(s) == "" && !s.Status().Running })
	if err := s.Set(config()); err != nil {
		t.Fatal(err)
	}
	until(t, s, "and on", func() bool { return shown(s) == "10.244.1.0/24=2" })
	if st := s.Status(); st.Restarts != 0 || st.Refused != 0 {
		t.Errorf("%+v", st)
	}
	c := config()
	c.ASN = 64999
	if err := s.Set(c); err != nil {
		t.Fatal(err)
	}
	until(t, s, "another AS needs another child, which is no death", func() bool { return s.Status().Running && s.Status().Restarts == 0 && shown(s) == "10.244.1.0/24=2" })
}

// TestOtherChildren die or lie in their ways; the agent goes on, holds no route that it may not, and says why.
func TestOtherChildren(t *testing.T) {
	for name, want := range map[string]struct{ why, routes string }{
		"old":    {"another version", ""},
		"mute":   {"panic: out of ideas", ""},
		"vandal": {"has 0 paths", ""},
		"flood":  {"longer than its bound", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := run(t, name, io.Discard)
			if err := s.Set(config()); err != nil {
				t.Fatal(err)
			}
			until(t, s, "it dies and is started again", func() bool { return s.Status().Restarts >= 3 })
			if st := s.Status(); !strings.Contains(st.LastDeath, want.why) {
				t.Errorf("why: %q, want %q", st.LastDeath, want.why)
			}
			if got := shown(s); got != want.routes {
				t.Errorf("routes: %q", got)
			}
		})
	}
}

func TestBabbler(t *testing.T) {
	var log lines
	s := run(t, "babbler", &log)
	if err := s.Set(config()); err != nil {
		t.Fatal(err)
	}
	until(t, s, "it dies", func() bool { return s.Status().LastDeath != "" })
	if !strings.Contains(s.Status().LastDeath, "panic: enough") {
		t.Errorf("%q", s.Status().LastDeath)
	}
	log.mu.Lock()
	defer log.mu.Unlock()
	if n := strings.Count(log.b.String(), " of "); n == 0 || n > linesPerMinute*(1+s.Status().Restarts) || strings.Contains(log.b.String(), "\x1b") {
		t.Errorf("%d lines are logged:\n%.2000s", n, log.b.String())
	}
}

type lines struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func TestLiar(t *testing.T) {
	s := run(t, "liar", io.Discard)
	if err := s.Set(config()); err != nil {
		t.Fatal(err)
	}
	until(t, s, "what is true is taken, the rest refused", func() bool { return shown(s) == "10.244.1.0/24=2" && s.Status().Refused == 3 })
}

func TestStatusIsOfConfiguredPeers(t *testing.T) {
	s := run(t, "nameless", io.Discard)
	c := config()
	c.Peers[0].Name = "rack"
	if err := s.Set(c); err != nil {
		t.Fatal(err)
	}
	until(t, s, "sessions are shown", func() bool { return len(s.Status().Peers) > 0 })
	if p := s.Status().Peers; len(p) != 1 || p[0].Name != "rack" || p[0].Address != netip.MustParseAddr("10.0.0.2") {
		t.Errorf("%+v", p)
	}
}

// TestChildIsConfined looks at what a child has from inside.
func TestChildIsConfined(t *testing.T) {
	t.Setenv("BERTH_SECRET", "canary")
	leak, err := syscall.Open("/dev/zero", syscall.O_RDONLY, 0) // without O_CLOEXEC, as a library might
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(leak) //nolint:errcheck // at the test's end
	s := run(t, "introspector", io.Discard)
	if err := s.Set(config()); err != nil {
		t.Fatal(err)
	}
	until(t, s, "it says what it sees", func() bool { return s.Status().LastDeath != "" })
	got := s.Status().LastDeath
	bind := fmt.Sprintf("%016x", 1<<unix.CAP_NET_BIND_SERVICE)
	for _, want := range []string{
		"env=0", "args=1", "fds=[/dev/null /dev/null pipe socket]", fmt.Sprintf("Uid=%d,%d,%d,%d", uid, uid, uid, uid), "Groups= ",
		"CapInh=" + bind, "CapPrm=" + bind, "CapEff=" + bind, "CapAmb=" + bind,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("want %q in %s", want, got)
		}
	}
}

func TestRootIsRefused(t *testing.T) {
	if _, err := start(Options{Program: "/bin/true"}); err == nil || !strings.Contains(err.Error(), "as root") {
		t.Errorf("%v", err)
	}
}
