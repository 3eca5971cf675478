package cluster

import (
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-project/berth/proto/errs"
)

const gib = int64(1) << 30

func wants(uids string, bytes int64) (all []want) {
	for _, uid := range strings.Fields(uids) {
		all = append(all, want{uid: types.UID(uid), name: "claim-" + uid, class: "fast", pool: "p", bytes: bytes})
	}
	return all
}

// TestRoomLetsAllOfAPodInOrNone: two claims of 3 GiB do not fit into 5, whichever of them asks and however often; one
// of them does, and so do both once there is room.
func TestRoomLetsAllOfAPodInOrNone(t *testing.T) {
	r, now := newRoom(), time.Now()
	for _, pod := range [][]want{wants("a b", 3*gib), wants("b a", 3*gib), wants("a b", 3*gib)} {
		err := r.let(pod, 5*gib, now)
		if errs.Of(err) != errs.ResourceExhausted || !strings.Contains(err.Error(), "claim-a") || !strings.Contains(err.Error(), "claim-b") {
			t.Fatalf("let in: %v", err)
		}
	}
	if len(r.marks) != 0 {
		t.Errorf("of a pod that was turned away is left: %v", r.marks)
	}
	if err := r.let(wants("c", 3*gib), 5*gib, now); err != nil {
		t.Error(err)
	}
	if err := r.let(wants("a b", 3*gib), 8*gib, now); errs.Of(err) != errs.ResourceExhausted {
		t.Errorf("8 GiB less c's 3 hold two of 3: %v", err)
	}
	r.done("c", true, now) // now the ledger has it
	if err := r.let(wants("a b", 3*gib), 6*gib, now); err != nil {
		t.Error(err)
	}
	if err := r.let(wants("a b", 3*gib), 3*gib, now); err != nil { // b asks, a was made already and took its part
		t.Errorf("b was let in with a: %v", err)
	}
}

// TestRoomForAll: claims that wait fit if those that are not let in yet do, beside those that are.
func TestRoomForAll(t *testing.T) {
	r, now := newRoom(), time.Now()
	if !r.all(wants("a b c", gib), 3*gib) || r.all(wants("a b c", gib), 3*gib-1) {
		t.Error("three of 1 GiB want 3 GiB")
	}
	if err := r.let(wants("a", gib), gib, now); err != nil {
		t.Fatal(err)
	}
	if !r.all(wants("a b c", gib), 3*gib) {
		t.Error("one that was let in counts twice")
	}
	r.done("a", false, now)
	if len(r.marks) != 0 {
		t.Errorf("one that failed is still promised: %v", r.marks)
	}
}

// TestRoomOffersLess: after a pod was turned away the node offers no volume as large as its largest, until room comes
// free or the time is over.
func TestRoomOffersLess(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		name      string
		available int64
		after     time.Duration
		want      int64
	}{
		{"at once", 5 * gib, 0, 3*gib - 1},
		{"with less room than that", 2 * gib, 0, 2 * gib},
		{"when room comes free", 6 * gib, 0, 6 * gib},
		{"later", 5 * gib, turnedAway + time.Second, 5 * gib},
	} {
		r := newRoom()
		if err := r.let(wants("a b", 3*gib), 5*gib, now); err == nil {
			t.Fatal("let in")
		}
		if got := r.offer("fast", c.available, c.available, now.Add(c.after)); got != c.want {
			t.Errorf("%s: offers %d, want %d", c.name, got, c.want)
		}
		if got := r.offer("other", c.available, c.available, now); got != c.available {
			t.Errorf("%s: another class offers %d", c.name, got)
		}
	}
}

// TestRoomAgain: the loop wakes when what was turned away may be offered again, and else never.
func TestRoomAgain(t *testing.T) {
	r, now := newRoom(), time.Now()
	if r.again(now) != nil {
		t.Error("nothing was turned away")
	}
	if err := r.let(wants("a b", 3*gib), 5*gib, now.Add(-turnedAway)); err == nil {
		t.Fatal("let in")
	}
	select {
	case <-r.again(now):
	case <-time.After(5 * time.Second):
		t.Error("it does not wake")
	}
}
