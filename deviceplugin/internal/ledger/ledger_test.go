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
	whole := Offer{Resource: "x/gpu", Shares: 1}
	ok(l.Give(whole, []string{"a", "b"}))
	refused(l.Claim("c1", []string{"b"}))
	ok(l.Claim("c1", []string{"c"}))
	ok(l.Claim("c1", []string{"c"})) // asked again
	refused(l.Claim("c2", []string{"c"}))
	refused(l.Give(whole, []string{"d", "c"}))
	if got := l.Given(); len(got) != 2 {
		t.Fatal("a refusal was noted in part:", got)
	}
	l.Reconcile([]Use{{whole.Resource, "a"}})
	refused(l.Claim("c2", []string{"b"})) // it may be on its way into a pod
	now = now.Add(2 * settle)
	if !l.Reconcile([]Use{{whole.Resource, "a"}}) {
		t.Error("a device that came back is no change")
	}
	ok(l.Claim("c2", []string{"b"}))
	refused(l.Claim("c3", []string{"a"}))
	now = now.Add(absent)
	if l.Reconcile(nil) {
		t.Error("a change")
	}
	refused(l.Claim("c3", []string{"a"})) // the kubelet may have just started
	l.Reconcile([]Use{{whole.Resource, "a"}})
	now = now.Add(absent)
	l.Reconcile(nil)
	refused(l.Claim("c3", []string{"a"})) // it was shown in between
	now = now.Add(time.Second)
	l.Reconcile(nil)
	ok(l.Claim("c3", []string{"a"})) // well before settle: it was seen, and is gone
	ok(l.Release("c3"))

	l, err = Open(dir, clock) // a restart
	ok(err)
	refused(l.Give(whole, []string{"b"}))
	ok(l.Release("c2"))
	ok(l.Release("c2"))
	ok(l.Give(whole, []string{"b"}))
	l.Reconcile([]Use{{whole.Resource, "z"}})
	refused(l.Claim("c4", []string{"z"}))

	if err := os.WriteFile(filepath.Join(dir, "claims.json"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, clock); err == nil {
		t.Error("a damaged ledger is taken")
	}
}

// TestEarlierOffer: a device that a container has under one offer is given under no other until it came back,
// whichever of name and shares has changed; what the container has stays as it is.
func TestEarlierOffer(t *testing.T) {
	whole, shared, four, two := Offer{"x/gpu", 1}, Offer{"x/shared", 4}, Offer{"x/gpu", 4}, Offer{"x/gpu", 2}
	for name, c := range map[string]struct {
		from, to Offer
		had, id  string
		kept     bool
	}{
		"the same id again":                    {whole, whole, "a", "a", false},
		"whole, then shares of another name":   {whole, shared, "a", "a::0", true},
		"whole, then shares of that name":      {whole, four, "a", "a::0", true},
		"a share, then whole by another name":  {shared, whole, "a::2", "a", true},
		"a share, then whole":                  {four, whole, "a::2", "a", true},
		"a share, then shares of another name": {shared, four, "a::2", "a::2", true},
		"more shares":                          {two, four, "a::1", "a::3", false},
		"fewer, and one that is counted":       {four, two, "a::1", "a::0", false},
		"fewer, and one that is not":           {four, two, "a::2", "a::0", true},
		"another device":                       {whole, shared, "b", "a::0", false},
	} {
		now := time.Unix(1_700_000_000, 0)
		l, err := Open(t.TempDir(), func() time.Time { return now })
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Give(c.from, []string{c.had}); err != nil {
			t.Fatal(name, err)
		}
		why, err := l.Held(c.to, c.id), l.Give(c.to, []string{c.id})
		if (why != "") != c.kept || (err != nil) != c.kept || c.kept && (errs.Of(err) != errs.FailedPrecondition || why != "held under its earlier offer, as "+c.had+" of "+c.from.Resource) {
			t.Errorf("%s: %q, %v", name, why, err)
		}
		if why := l.Held(c.from, c.had); why != "" {
			t.Errorf("%s: what it has itself: %q", name, why)
		}
		now = now.Add(2 * settle)
		l.Reconcile(nil)
		if err := l.Give(c.to, []string{c.id}); err != nil {
			t.Errorf("%s: it came back: %v", name, err)
		}
	}
	l, err := Open(t.TempDir(), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	l.Reconcile([]Use{{"x/gpu", "a"}}) // of before our start
	if l.Held(shared, "a::1") == "" || l.Held(whole, "a") != "" || l.Held(shared, "b::1") != "" {
		t.Error("what the kubelet shows is not kept")
	}
}
