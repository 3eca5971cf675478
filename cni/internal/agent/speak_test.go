package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth/cni/internal/fabric"
	"github.com/berth-project/berth/cni/internal/overlay"
)

// told is a speaker that counts how often it was told what, and leaves out what it is asked to.
type told struct {
	silent
	sets int
	left []string
	err  error
	hook func()
}

func (s *told) Set(*fabric.Fabric, string) ([]string, error) {
	s.sets++
	if s.hook != nil {
		s.hook()
	}
	return s.left, s.err
}

func (s *told) Learned() []overlay.Learned    { return nil }
func (s *told) Run(ctx context.Context) error { return s.silent.Run(ctx) }

// TestSpeakerIsTriedAgain: what the speaker leaves out is shown, and tried again on a patrol, not on every event.
func TestSpeakerIsTriedAgain(t *testing.T) {
	a, s := newAgent(t, "n1"), &told{left: []string{"bgp.peers[0] (left): no such file"}}
	a.speaker = s
	a.speakAgain(time.Now()) // without a fabric there is nothing to say
	if !a.accept(Delivery{Fabric: parsed(t), Remarks: []string{"node x"}}) || s.sets != 1 {
		t.Fatalf("told %d times", s.sets)
	}
	if got := a.Status().Remarks; len(got) != 2 || got[1] != s.left[0] || !strings.Contains(a.Metrics(), "fabric_remarks 2") {
		t.Errorf("remarks %q", got)
	}
	a.speakAgain(time.Now())
	if s.sets != 1 {
		t.Error("told on an event")
	}
	s.left, s.err = nil, errors.New("no")
	a.speakAgain(time.Now().Add(patrol))
	if got := a.Status().Remarks; s.sets != 2 || len(got) != 2 || !strings.Contains(got[1], "old configuration stays: no") {
		t.Errorf("told %d times, remarks %q", s.sets, got)
	}
	s.err = nil
	a.speakAgain(time.Now().Add(patrol + time.Second))
	if got := a.Status().Remarks; len(got) != 1 {
		t.Errorf("remarks %q", got)
	}
}

// TestTheSameFabricIsSkipped: nothing is written, said or applied; a refusal is over all the same, and a snapshot that
// failed is tried again.
func TestTheSameFabricIsSkipped(t *testing.T) {
	a, s := newAgent(t, "n1"), &told{}
	a.speaker = s
	if !a.accept(Delivery{Fabric: parsed(t)}) {
		t.Fatal("refused")
	}
	before, err := os.Stat(a.snapshotFile())
	if err != nil {
		t.Fatal(err)
	}
	a.accept(Delivery{Err: errors.New("gone for a moment")})
	if a.accept(Delivery{Fabric: parsed(t), Remarks: []string{"node x"}}) || s.sets != 1 {
		t.Errorf("applied again, told %d times", s.sets)
	}
	if after, err := os.Stat(a.snapshotFile()); err != nil || !os.SameFile(before, after) {
		t.Errorf("the snapshot was written again: %v", err)
	}
	if st := a.Status(); st.Refused != "" || len(st.Remarks) != 1 {
		t.Errorf("refused %q, remarks %q", st.Refused, st.Remarks)
	}
	if !a.accept(Delivery{Fabric: parsed(t), Names: overlay.FlannelNames(1)}) || s.sets != 2 {
		t.Error("other names were skipped")
	}
	// A fabric that is as it was, but could not be written then.
	root := a.conf.Root
	a.conf.Root = filepath.Join(root, "none")
	other := parsed(t)
	other.Nodes[1].MTU = 1400
	if !a.accept(Delivery{Fabric: other}) {
		t.Error("another fabric was skipped")
	}
	a.conf.Root = root
	a.speakAgain(time.Now().Add(patrol))
	if got, err := readSnapshot(a.snapshotFile()); err != nil || got.Fabric.Nodes[1].MTU != 1400 {
		t.Errorf("the snapshot was not tried again: %v", err)
	}
}

// TestStatusDoesNotWaitForFiles: whoever asks is answered while passwords are read.
func TestStatusDoesNotWaitForFiles(t *testing.T) {
	a, s := newAgent(t, "n1"), &told{}
	a.speaker = s
	s.hook = func() {
		done := make(chan struct{})
		go func() { defer close(done); a.Metrics() }()
		select {
		case <-done:
		case <-time.After(5 * time.Second):
			t.Error("the lock is held")
		}
	}
	a.accept(Delivery{Fabric: parsed(t)})
}
