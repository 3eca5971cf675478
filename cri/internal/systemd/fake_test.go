package systemd

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/cri/internal/cgroup"
)

// fake is a process 1 that makes scopes as systemd does, on a bus of the test's own: it moves the processes it is told of,
// and removes a scope's groups when the last process of one is gone.
type fake struct {
	t      *testing.T
	groups *cgroup.Layout
	root   string // slice below which all lies, the test's own

	mu      sync.Mutex
	units   map[string]string // unit: group
	started []map[string]any  // properties of each unit that was asked for
	refuse  error             // what StartTransientUnit says
	linger  int               // for how many requests a unit that has ended still exists
	stop    chan struct{}
}

// bus starts the reference bus with a socket of the test's own and returns its address and process.
func bus(t *testing.T, dir string) (string, *exec.Cmd) {
	t.Helper()
	conf := filepath.Join(dir, "bus.conf")
	text := `<busconfig><type>system</type><listen>unix:path=` + dir + `/bus</listen><auth>EXTERNAL</auth>` +
		`<policy context="default"><allow user="*"/><allow own="*"/><allow send_destination="*"/><allow receive_sender="*"/></policy></busconfig>`
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	_ = os.Remove(dir + "/bus")
	cmd := exec.Command("dbus-daemon", "--config-file", conf, "--nofork", "--nopidfile", "--print-address=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("dbus-daemon (Debian package dbus-daemon): %v", err)
	}
	address, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(address), cmd
}

func end(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait() // killed
}

// newFake makes a fake and its group; what is left in the group at the end fails the test.
func newFake(t *testing.T) *fake {
	t.Helper()
	groups, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	if groups.Unified == "" {
		t.Skip("no unified cgroup tree: a kernel without cgroup v2")
	}
	f := &fake{t: t, groups: groups, root: fmt.Sprintf("berthtest%d.slice", os.Getpid()), units: map[string]string{}, stop: make(chan struct{})}
	var wg sync.WaitGroup
	wg.Go(f.collect)
	t.Cleanup(func() {
		close(f.stop)
		wg.Wait()
		if pids := groups.Pids("/" + f.root); len(pids) > 0 {
			t.Errorf("processes left: %v", pids)
		}
		if left, _ := filepath.Glob(groups.Unified + "/" + f.root + "/*.scope"); len(left) > 0 {
			t.Errorf("scopes left: %v", left)
		}
		if err := groups.Remove("/" + f.root); err != nil {
			t.Error(err)
		}
	})
	return f
}

// serve puts the fake on a bus.
func (f *fake) serve(address string) {
	f.t.Helper()
	c, err := dbus.Connect(address)
	if err != nil {
		f.t.Fatal(err)
	}
	if err := c.Export(f, object, name+".Manager"); err != nil {
		f.t.Fatal(err)
	}
	if err := c.Export(properties{}, object, "org.freedesktop.DBus.Properties"); err != nil {
		f.t.Fatal(err)
	}
	if r, err := c.RequestName(name, dbus.NameFlagDoNotQueue); err != nil || r != dbus.RequestNameReplyPrimaryOwner {
		f.t.Fatal(r, err)
	}
	f.t.Cleanup(func() { _ = c.Close() })
}

type properties struct{}

// Get answers for the one property that is asked for.
func (properties) Get(string, string) (dbus.Variant, *dbus.Error) {
	return dbus.MakeVariant("fake"), nil
}

// StartTransientUnit is systemd's.
func (f *fake) StartTransientUnit(unit, _ string, props []property, _ []aux) (dbus.ObjectPath, *dbus.Error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.refuse != nil {
		return "", dbus.MakeFailedError(f.refuse)
	}
	if _, exists := f.units[unit]; exists {
		return "", dbus.NewError(name+".UnitExists", []any{"Unit " + unit + " was already loaded or has a fragment file."})
	}
	all := map[string]any{}
	for _, p := range props {
		all[p.Name] = p.Value.Value()
	}
	f.started = append(f.started, all)
	slice, err := cgroup.ExpandSlice(all["Slice"].(string))
	if err != nil {
		return "", dbus.MakeFailedError(err)
	}
	group := path.Join(slice, unit)
	f.units[unit] = group
	go func() { // as a job
		time.Sleep(3 * time.Millisecond)
		if err := os.MkdirAll(f.groups.Unified+group, 0o755); err != nil {
			f.t.Error(err)
		}
		for _, pid := range all["PIDs"].([]uint32) {
			if err := os.WriteFile(f.groups.Unified+group+"/cgroup.procs", fmt.Append(nil, pid), 0o644); err != nil && !errors.Is(err, unix.ESRCH) { // gone: then the scope is empty
				f.t.Error(err)
			}
		}
		time.Sleep(3 * time.Millisecond)
	}()
	return "/job", nil
}

// StopUnit is systemd's.
func (f *fake) StopUnit(unit, _ string) (dbus.ObjectPath, *dbus.Error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, exists := f.units[unit]; !exists {
		return "", dbus.NewError(name+".NoSuchUnit", []any{"Unit " + unit + " not loaded."})
	}
	return "/job", nil
}

// collect forgets units whose last process is gone.
func (f *fake) collect() {
	for {
		select {
		case <-f.stop:
			return
		case <-time.After(2 * time.Millisecond):
		}
		f.mu.Lock()
		for unit, group := range f.units {
			b, err := os.ReadFile(f.groups.Unified + group + "/cgroup.events")
			if err != nil || !strings.Contains(string(b), "populated 0") || f.fresh(group) {
				continue
			}
			if f.linger--; f.linger < 0 && f.groups.Remove(group) == nil {
				delete(f.units, unit)
			}
		}
		f.mu.Unlock()
	}
}

// fresh says that a group was made a moment ago: its first process is on its way.
func (f *fake) fresh(group string) bool {
	fi, err := os.Stat(f.groups.Unified + group)
	return err == nil && time.Since(fi.ModTime()) < 20*time.Millisecond
}
