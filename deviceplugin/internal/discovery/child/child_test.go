package child

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berth-project/berth/deviceplugin/internal/discovery"
	"github.com/berth-project/berth/deviceplugin/internal/discovery/fake"
	"github.com/berth-project/berth/proto/errs"
)

const childEnv = "BERTH_TEST_PROFILE"

// TestMain is the child, too: this program with a profile in its environment.
func TestMain(m *testing.M) {
	if p := os.Getenv(childEnv); p != "" {
		if strings.HasSuffix(p, "crash.yaml") {
			fmt.Println("a library wrote this, and died")
			os.Exit(3)
		}
		src, err := fake.Open(p)
		if err == nil {
			err = Serve(context.Background(), os.Stdin, os.Stdout, src)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

const four = "origin: test\ndriver: {version: 580.1}\nmajors: {nvidia: 195}\ngpus: [{count: 4, product: H100}]\nfabric: {}\n"

func client(t *testing.T, file, text string) (*Client, func(string)) {
	t.Helper()
	path := filepath.Join(t.TempDir(), file)
	set := func(text string) {
		t.Helper()
		if err := errors.Join(os.WriteFile(path+".tmp", []byte(text), 0o600), os.Rename(path+".tmp", path)); err != nil {
			t.Fatal(err)
		}
	}
	set(text)
	t.Setenv(childEnv, path)
	c := New("fake", "/proc/self/exe", nil)
	t.Cleanup(func() {
		lanes := []*process{}
		c.mu.Lock()
		for _, p := range c.lanes {
			lanes = append(lanes, p)
		}
		c.mu.Unlock()
		c.Close()
		for _, p := range lanes {
			if p.ended() == nil {
				t.Error("a child is left")
			}
		}
	})
	return c, set
}

func uuid(i int) string { return fmt.Sprintf("GPU-be27f000-0000-4000-8000-%012x", i) }

func gpu(i int) discovery.Target {
	return discovery.Target{UUID: uuid(i), Bus: fmt.Sprintf("0000:%02x:00.0", 0x10+i*8)}
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestAnswers(t *testing.T) {
	c, set := client(t, "p.yaml", four)
	n, err := c.Inventory(within(t, 5*time.Second))
	if err != nil || len(n.GPUs) != 4 {
		t.Fatal(n, err)
	}
	if s, err := c.Sample(within(t, 5*time.Second), gpu(2)); err != nil || s.Lost {
		t.Error(s, err)
	}
	if _, err := c.Sample(within(t, 5*time.Second), gpu(9)); errs.Of(err) != errs.NotFound {
		t.Error("a GPU that is not there:", err)
	}
	if _, err := c.Sample(within(t, 5*time.Second), discovery.Target{UUID: uuid(2), Bus: gpu(1).Bus}); errs.Of(err) != errs.NotFound {
		t.Error("a GPU where another one is:", err)
	}
	if ps, err := c.Processes(within(t, 5*time.Second), gpu(2)); err != nil || len(ps) != 0 {
		t.Error(ps, err)
	}
	set(four + "faults: [{gpu: 1, xid: 31, times: 1}]\n")
	if ev, err := c.Events(within(t, 5*time.Second)); err != nil || len(ev) != 1 || ev[0].XID != 31 || ev[0].GPU != uuid(1) {
		t.Error(ev, err)
	}
	if _, err := c.Events(within(t, 100*time.Millisecond)); !errors.Is(err, context.DeadlineExceeded) {
		t.Error("waiting for nothing:", err)
	}
	if c.Starts() != 2 {
		t.Errorf("%d children for looks and lists", c.Starts())
	}
}

// TestHang: the GPU that hangs times out, in its own child; all others answer all the while, and it does as soon as
// it is well again.
func TestHang(t *testing.T) {
	c, set := client(t, "p.yaml", four+"faults: [{gpu: 1, hang: 30s}]\n")
	for round := range 3 {
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				start := time.Now()
				_, err := c.Sample(within(t, 800*time.Millisecond), gpu(i))
				if (err != nil) != (i == 1) {
					t.Errorf("round %d: GPU %d: %v", round, i, err)
				}
				if took := time.Since(start); took > 1200*time.Millisecond {
					t.Errorf("round %d: GPU %d took %v", round, i, took)
				}
			})
		}
		wg.Wait()
	}
	set(four)
	if _, err := c.Sample(within(t, 2*time.Second), gpu(1)); err != nil {
		t.Error("it is well:", err)
	}
}

// TestCrash: a child that dies, or whose library writes where answers go, is an error, and not asked without pause.
func TestCrash(t *testing.T) {
	c, _ := client(t, "crash.yaml", "")
	for range 50 {
		if _, err := c.Inventory(within(t, time.Second)); errs.Of(err) != errs.Unavailable && errs.Of(err) != errs.DeadlineExceeded {
			t.Fatal(err)
		}
	}
	if c.Starts() > 2 {
		t.Errorf("%d children within a moment", c.Starts())
	}
}

// TestKilled: SIGKILL of the children loses nothing but time.
func TestKilled(t *testing.T) {
	c, _ := client(t, "p.yaml", four)
	for range 5 {
		if _, err := c.Sample(within(t, 2*time.Second), gpu(0)); err != nil {
			t.Fatal(err)
		}
		c.mu.Lock()
		p := c.lanes[""]
		c.mu.Unlock()
		p.kill()
		<-p.done
	}
}

func TestServeRefusesNonsense(t *testing.T) {
	src, err := fake.Open("t4x4")
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := Serve(t.Context(), strings.NewReader("hello\n"), &out, src); errs.Of(err) != errs.InvalidArgument {
		t.Error(err)
	}
}
