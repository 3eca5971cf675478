// Package health decides whether a physical GPU may be given to containers: a state machine that falls ill on
// evidence and gets well on evidence.
//
//	            a condition appears                       the condition is gone
//	Healthy ─────────────────────────▶ Sick ────────────────────────────────────▶ Recovering
//	   ▲                                ▲                                              │
//	   │                                └────────────── a condition appears ───────────┤
//	   └────────────────────────────── nothing for the hold-down ──────────────────────┘
//
// The hold-down doubles with each relapse and is forgotten after an hour of health, so that a GPU that flaps is
// not offered ten times a minute. The machine is pure: time is an input, and the state is data that is kept across
// restarts of the program (not of the machine: its boot id is with it).
package health

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Phase is where the machine stands.
type Phase string

// The phases.
const (
	Healthy    Phase = "Healthy"
	Sick       Phase = "Sick"
	Recovering Phase = "Recovering"
)

// Sample is what one look at a GPU found.
type Sample struct {
	// Lost: it does not answer on its bus.
	Lost bool `json:"lost,omitempty"`
	// Uncorrected counts uncorrectable ECC errors since the driver was loaded or the GPU reset (volatile).
	Uncorrected uint64 `json:"uncorrected,omitempty"`
	// RemapPending: rows wait for a reset to be remapped (the GPU works); RemapFailed: none are left to remap to.
	RemapPending bool `json:"remapPending,omitempty"`
	RemapFailed  bool `json:"remapFailed,omitempty"`
	// LinksDown counts NVLinks that were up and are not.
	LinksDown int `json:"linksDown,omitempty"`
	// Recovery is what the driver says has to be done: "", "none", "reset", "reboot", "drain" (NVML 12.8, R570); ""
	// if it cannot say.
	Recovery string `json:"recovery,omitempty"`
	// Unread says which of these could not be read: their zero is no evidence, and what they said before stands.
	Unread Unread `json:"unread,omitzero"`
	// For the view and for metrics: bytes, per cent, degrees Celsius, watts.
	MemoryUsed  uint64 `json:"memoryUsed,omitempty"`
	Utilization int    `json:"utilization,omitempty"`
	Temperature int    `json:"temperature,omitempty"`
	Power       int    `json:"power,omitempty"`
}

// Unread are figures of a sample that are not known, because the source cannot tell them or a call failed.
type Unread struct {
	ECC      bool `json:"ecc,omitempty"`   // Uncorrected
	Remap    bool `json:"remap,omitempty"` // RemapPending, RemapFailed
	Links    bool `json:"links,omitempty"` // LinksDown
	Recovery bool `json:"recovery,omitempty"`
}

// Event is an XID the driver reported for a GPU.
type Event struct {
	GPU string `json:"gpu"` // UUID
	XID int    `json:"xid"`
}

// Input is one step's evidence about one GPU.
type Input struct {
	Now time.Time
	// Sample is nil when the look did not end in time or failed; Error says how.
	Sample *Sample
	Error  string
	XIDs   []int
}

// State is one GPU's. The zero State is a healthy GPU that was never looked at.
type State struct {
	Phase Phase `json:"phase,omitempty"`
	// Conditions are what is wrong, by name, with the text a person reads.
	Conditions map[string]string `json:"conditions,omitempty"`
	// Since is when the phase was entered.
	Since time.Time `json:"since,omitzero"`
	// Relapses counts falls within the last hour.
	Relapses int       `json:"relapses,omitempty"`
	LastFall time.Time `json:"lastFall,omitzero"`
	// Uncorrected is the counter's last value, so that only a rise is news.
	Uncorrected uint64 `json:"uncorrected,omitempty"`
	Seen        bool   `json:"seen,omitempty"`
	// Quiet is when the last XID of class Reset or Hardware came.
	Quiet time.Time `json:"quiet,omitzero"`
	// XIDs counts what came, by number, for metrics.
	XIDs map[int]int `json:"xids,omitempty"`
}

// Rules are the operator's.
type Rules struct {
	// HoldDown is how long a GPU is watched before it is healthy again after its first fall; doubled with each, up
	// to MaxHoldDown.
	HoldDown, MaxHoldDown time.Duration
	// Quiet is how long no serious XID must come before one is forgotten where nothing tells of a reset.
	Quiet time.Duration
	// Ignore and Fatal are XIDs whose class is overruled: Note and Reset.
	Ignore, Fatal []int
}

// Condition names.
const (
	conditionLost   = "lost"
	conditionSilent = "not answering"
	conditionECC    = "uncorrectable memory errors"
	conditionRemap  = "row remapping failed"
	conditionLink   = "NVLink down"
	conditionAction = "recovery needed"
	conditionXID    = "xid"
)

// forget is after how much health relapses are forgotten.
const forget = time.Hour

// Step is the machine: what s becomes on an input. s is not changed.
func Step(s State, in Input, r Rules) State {
	s.Conditions, s.XIDs = maps.Clone(s.Conditions), maps.Clone(s.XIDs)
	if s.Conditions == nil {
		s.Conditions = map[string]string{}
	}
	if s.Phase == "" {
		s.Phase, s.Since = Healthy, in.Now
	}
	wasReset := observe(&s, in, r)
	for _, x := range in.XIDs {
		report(&s, x, in.Now, r)
	}
	quiet := in.Sample != nil && !in.Sample.Lost && len(in.XIDs) == 0
	if quiet && (wasReset || r.Quiet > 0 && in.Now.Sub(s.Quiet) >= r.Quiet) {
		delete(s.Conditions, conditionXID)
		delete(s.Conditions, conditionECC)
	}
	move(&s, in.Now, r)
	if len(s.Conditions) == 0 {
		s.Conditions = nil
	}
	return s
}

// observe takes a sample over: what it can see comes and goes with it. It says whether the GPU was reset since the
// last one.
func observe(s *State, in Input, r Rules) (reset bool) {
	set := func(name string, on bool, format string, args ...any) {
		if on {
			s.Conditions[name] = fmt.Sprintf(format, args...)
			return
		}
		delete(s.Conditions, name)
	}
	p := in.Sample
	if set(conditionSilent, p == nil, "%s", in.Error); p == nil {
		return false
	}
	_, wasLost := s.Conditions[conditionLost]
	if set(conditionLost, p.Lost, "it does not answer on its bus"); p.Lost {
		return false
	}
	if !p.Unread.Remap {
		set(conditionRemap, p.RemapFailed, "a memory row could not be remapped: the board has to be replaced")
	}
	if !p.Unread.Links {
		set(conditionLink, p.LinksDown > 0, "%d NVLinks are down", p.LinksDown)
	}
	if !p.Unread.Recovery {
		set(conditionAction, p.Recovery != "" && p.Recovery != "none" && p.Recovery != "drain", "the driver asks for a %s", p.Recovery)
	}
	reset = wasLost
	if !p.Unread.ECC {
		reset = s.count(p.Uncorrected, in.Now) || reset
	}
	// the driver itself says that nothing has to be done: that is later news than an XID of an earlier step
	return reset || p.Recovery == "none" && in.Now.Sub(s.Quiet) >= r.HoldDown
}

// count takes the volatile counter of uncorrectable errors over, and says whether it fell: the GPU was reset.
func (s *State) count(errors uint64, now time.Time) (reset bool) {
	if errors > s.Uncorrected && s.Seen || errors > 0 && !s.Seen {
		s.Conditions[conditionECC] = fmt.Sprintf("%d uncorrectable memory errors since its last reset", errors)
		s.Quiet = now
	}
	reset = s.Seen && errors < s.Uncorrected
	s.Uncorrected, s.Seen = errors, true
	return reset
}

func report(s *State, xid int, now time.Time, r Rules) {
	if s.XIDs == nil {
		s.XIDs = map[int]int{}
	}
	if len(s.XIDs) < 256 || s.XIDs[xid] > 0 {
		s.XIDs[xid]++
	}
	x := LookUp(xid)
	switch {
	case slices.Contains(r.Ignore, xid):
		x.Class = Note
	case slices.Contains(r.Fatal, xid):
		x.Class = Reset
	}
	switch x.Class {
	case Reset, Hardware:
		s.Conditions[conditionXID] = fmt.Sprintf("XID %d, %s", xid, x.Name)
		s.Quiet = now
	case Gone:
		s.Conditions[conditionLost] = fmt.Sprintf("XID %d, %s", xid, x.Name)
	case App, Note:
	}
}

func move(s *State, now time.Time, r Rules) {
	enter := func(p Phase) { s.Phase, s.Since = p, now }
	switch {
	case len(s.Conditions) > 0 && s.Phase != Sick:
		if s.Phase == Healthy && now.Sub(s.LastFall) > forget {
			s.Relapses = 0
		}
		s.Relapses, s.LastFall = s.Relapses+1, now
		enter(Sick)
	case len(s.Conditions) == 0 && s.Phase == Sick:
		enter(Recovering)
	case len(s.Conditions) == 0 && s.Phase == Recovering && now.Sub(s.Since) >= s.HoldDown(r):
		enter(Healthy)
	}
}

// HoldDown is how long this GPU is watched before it is healthy again.
func (s State) HoldDown(r Rules) time.Duration {
	d := r.HoldDown << min(max(s.Relapses-1, 0), 20)
	return min(d, max(r.MaxHoldDown, r.HoldDown))
}

// Reason is why the GPU may not be given away; "" if it may.
func (s State) Reason(r Rules) string {
	switch s.Phase {
	case Sick:
		var all []string
		for _, name := range slices.Sorted(maps.Keys(s.Conditions)) {
			all = append(all, name+": "+s.Conditions[name])
		}
		return strings.Join(all, "; ")
	case Recovering:
		return fmt.Sprintf("recovering: watched for %v", s.HoldDown(r))
	case Healthy:
	}
	return ""
}
