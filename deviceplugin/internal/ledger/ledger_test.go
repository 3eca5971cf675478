package ledger

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/berth-project/berth/proto/errs"
)

func TestBothSides(t *testing.T) {
	dir, now := t.TempDir(), time.Unix(1_700_000_000, 0)
	clock := func() time.Time { return now }
	l, err := Open(dir, clock)
	if err != nil {
		t.Fatal(err)
	}
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	refused := func(err error) {
		t.Helper()
		if errs.Of(err) != errs.FailedPrecondition {
			t.Fatal(err)
		}
	}
	ok(l.Give([]string{"a", "b"}))
	refused(l.Claim("c1", []string{"b"}))
	ok(l.Claim("c1", []string{"c"}))
	ok(l.Claim("c1", []string{"c"})) // asked again
	refused(l.Claim("c2", []string{"c"}))
	refused(l.Give([]string{"d", "c"}))
	if got := l.Given(); len(got) != 2 {
		t.Fatal("a refusal was noted in part:", got)
	}
	l.Reconcile(map[string]bool{"a": true})
	refused(l.Claim("c2", []string{"b"})) // it may be on its way into a pod
	now = now.Add(2 * settle)
	if !l.Reconcile(map[string]bool{"a": true}) {
		t.Error("a device that came back is no change")
	}
	ok(l.Claim("c2", []string{"b"}))
	refused(l.Claim("c3", []string{"a"}))
	now = now.Add(absent)
	if l.Reconcile(nil) {
		t.Error("a change")
	}
	refused(l.Claim("c3", []string{"a"})) // the kubelet may have just started
	l.Reconcile(map[string]bool{"a": true})
	now = now.Add(absent)
	l.Reconcile(nil)
	refused(l.Claim("c3", []string{"a"})) // it was shown in between
	now = now.Add(time.Second)
	l.Reconcile(nil)
	ok(l.Claim("c3", []string{"a"})) // well before settle: it was seen, and is gone
	ok(l.Release("c3"))

	l, err = Open(dir, clock) // a restart
	ok(err)
	refused(l.Give([]string{"b"}))
	ok(l.Release("c2"))
	ok(l.Release("c2"))
	ok(l.Give([]string{"b"}))
	l.Reconcile(map[string]bool{"z": true})
	refused(l.Claim("c4", []string{"z"}))

	if err := os.WriteFile(filepath.Join(dir, "claims.json"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, clock); err == nil {
		t.Error("a damaged ledger is taken")
	}
}
