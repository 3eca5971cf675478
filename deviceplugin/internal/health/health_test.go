package health

import (
	"strings"
	"testing"
	"time"
)

var rules = Rules{HoldDown: 10 * time.Second, MaxHoldDown: 80 * time.Second, Quiet: 10 * time.Minute}

// script runs steps, one each second of a made-up clock unless a step waits, and checks the phase after each.
type step struct {
	wait   time.Duration
	sample *Sample
	xids   []int
	want   Phase
	reason string
}

func run(t *testing.T, name string, steps []step) State {
	t.Helper()
	var s State
	now := time.Unix(1_700_000_000, 0)
	for i, st := range steps {
		now = now.Add(max(st.wait, time.Second))
		in := Input{Now: now, Sample: st.sample, XIDs: st.xids}
		if st.sample == nil {
			in.Error = "no answer within 2s"
		}
		s = Step(s, in, rules)
		if s.Phase != st.want || !strings.Contains(s.Reason(rules), st.reason) {
			t.Fatalf("%s, step %d: %s %q, want %s %q", name, i, s.Phase, s.Reason(rules), st.want, st.reason)
		}
	}
	return s
}

func TestLives(t *testing.T) {
	fine, lost := &Sample{}, &Sample{Lost: true}
	unread := &Sample{Unread: Unread{ECC: true, Remap: true, Links: true, Recovery: true}}
	bad := &Sample{Uncorrected: 2, RemapFailed: true, LinksDown: 1, Recovery: "reset"}
	long := 15 * time.Second
	for name, steps := range map[string][]step{
		"an application's fault is none of the GPU's": {
			{0, fine, nil, Healthy, ""}, {0, fine, []int{13, 31, 43, 45, 94}, Healthy, ""},
		},
		"an unknown XID is noted":     {{0, fine, []int{9999}, Healthy, ""}},
		"lost and back":               {{0, fine, nil, Healthy, ""}, {0, lost, nil, Sick, "does not answer"}, {0, fine, nil, Recovering, "10s"}, {time.Second, fine, nil, Recovering, ""}, {long, fine, nil, Healthy, ""}},
		"off the bus by XID":          {{0, fine, []int{79}, Sick, "XID 79"}, {0, lost, nil, Sick, "bus"}, {0, fine, nil, Recovering, ""}, {long, fine, nil, Healthy, ""}},
		"not answering, then again":   {{0, nil, nil, Sick, "no answer within 2s"}, {0, fine, nil, Recovering, ""}, {long, fine, nil, Healthy, ""}},
		"ECC until the reset":         {{0, fine, nil, Healthy, ""}, {0, &Sample{Uncorrected: 2}, nil, Sick, "2 uncorrectable"}, {long, &Sample{Uncorrected: 2}, nil, Sick, ""}, {0, fine, nil, Recovering, ""}, {long, fine, nil, Healthy, ""}},
		"XID 48 until the reset":      {{0, &Sample{Uncorrected: 1}, []int{48}, Sick, "XID 48, double bit"}, {0, fine, nil, Recovering, ""}},
		"XID 119 until it is quiet":   {{0, fine, []int{119}, Sick, "GSP RPC timeout"}, {long, fine, nil, Sick, ""}, {10 * time.Minute, fine, nil, Recovering, ""}},
		"the driver wants a reset":    {{0, &Sample{Recovery: "reset"}, nil, Sick, "asks for a reset"}, {0, &Sample{Recovery: "none"}, nil, Recovering, ""}},
		"the driver says it is well":  {{0, fine, []int{95}, Sick, "XID 95"}, {0, &Sample{Recovery: "none"}, nil, Sick, ""}, {long, &Sample{Recovery: "none"}, nil, Recovering, ""}},
		"rows that wait are no harm":  {{0, &Sample{RemapPending: true}, nil, Healthy, ""}},
		"rows that failed are":        {{0, &Sample{RemapFailed: true}, nil, Sick, "replaced"}},
		"NVLink":                      {{0, &Sample{LinksDown: 2}, nil, Sick, "2 NVLinks"}, {0, fine, nil, Recovering, ""}},
		"two things at once":          {{0, &Sample{LinksDown: 1, RemapFailed: true}, nil, Sick, "; "}, {0, &Sample{RemapFailed: true}, nil, Sick, "row"}},
		"what is not read is no news": {{0, unread, nil, Healthy, ""}, {0, bad, nil, Sick, "2 uncorrectable"}, {0, unread, nil, Sick, "2 uncorrectable"}, {0, unread, nil, Sick, "1 NVLinks"}, {0, unread, nil, Sick, "a reset"}, {0, unread, nil, Sick, "replaced"}, {0, bad, nil, Sick, "2 uncorrectable"}, {0, fine, nil, Recovering, ""}},
		"an XID is not ended by it":   {{0, &Sample{Uncorrected: 1}, []int{48}, Sick, "XID 48"}, {0, unread, nil, Sick, "XID 48"}, {0, fine, nil, Recovering, ""}},
		"a relapse while recovering":  {{0, lost, nil, Sick, ""}, {0, fine, nil, Recovering, "10s"}, {0, lost, nil, Sick, ""}, {0, fine, nil, Recovering, "20s"}, {long, fine, nil, Recovering, ""}, {long, fine, nil, Healthy, ""}},
	} {
		run(t, name, steps)
	}
}

func TestHoldDownGrowsAndIsForgotten(t *testing.T) {
	var steps []step
	for range 6 {
		steps = append(steps, step{0, &Sample{Lost: true}, nil, Sick, ""}, step{0, &Sample{}, nil, Recovering, ""}, step{2 * time.Minute, &Sample{}, nil, Healthy, ""})
	}
	s := run(t, "flapping", steps)
	if d := s.HoldDown(rules); d != 80*time.Second {
		t.Error(d)
	}
	s = Step(s, Input{Now: s.Since.Add(2 * time.Hour), Sample: &Sample{Lost: true}}, rules)
	if d := s.HoldDown(rules); d != 10*time.Second {
		t.Error(d)
	}
}

func TestOperatorsRules(t *testing.T) {
	r := rules
	r.Ignore, r.Fatal = []int{119}, []int{31}
	if s := Step(State{}, Input{Now: time.Unix(1, 0), Sample: &Sample{}, XIDs: []int{119}}, r); s.Phase != Healthy || s.XIDs[119] != 1 {
		t.Error(s)
	}
	if s := Step(State{}, Input{Now: time.Unix(1, 0), Sample: &Sample{}, XIDs: []int{31}}, r); s.Phase != Sick {
		t.Error(s)
	}
}

func TestStepDoesNotChangeItsInput(t *testing.T) {
	s := State{Phase: Sick, Conditions: map[string]string{conditionLost: "x"}, XIDs: map[int]int{79: 1}}
	Step(s, Input{Now: time.Unix(1, 0), Sample: &Sample{}, XIDs: []int{79, 48}}, rules)
	if len(s.Conditions) != 1 || s.XIDs[79] != 1 {
		t.Error(s)
	}
}
