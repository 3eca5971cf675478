package torture

import (
	"fmt"
	"math/rand/v2"
	"slices"

	"google.golang.org/grpc/codes"
)

// The model of a node with a few pods of a few containers each: what a CRI client may expect of every operation in every
// state. It is pure; model_run_test.go holds a real daemon against it.
//
//	pod:        absent --run--> ready --stop--> notReady --remove--> absent (remove stops first)
//	container:  absent --create--> created --start--> running --stop or its own end--> exited --remove--> absent
const (
	modelPods       = 3
	modelContainers = 2
	longCode        = 5 // of a container that is asked to stop
	shortCode       = 7 // of a container that ends by itself
)

type state int

const (
	absent state = iota
	ready
	notReady
	created
	running
	exited
)

func (s state) String() string {
	return [...]string{"absent", "ready", "not ready", "created", "running", "exited"}[s]
}

// verb is an operation of the CRI.
type verb int

const (
	runSandbox verb = iota
	stopSandbox
	removeSandbox
	create
	start
	stopContainer
	removeContainer
	execSync
	verbs
)

func (v verb) String() string {
	return [...]string{"RunPodSandbox", "StopPodSandbox", "RemovePodSandbox", "CreateContainer", "StartContainer", "StopContainer", "RemoveContainer", "ExecSync"}[v]
}

// disturbance is what happens while an operation is under way.
type disturbance int

const (
	nothing     disturbance = iota
	cancelled               // its caller gives up at once, and asks again
	duplicated              // four callers ask for it
	daemonDies              // the daemon is killed meanwhile, and the caller asks the next one
	shimDies                // a supervisor is killed meanwhile
	disturbedBy             // how many there are
)

func (d disturbance) String() string {
	return [...]string{"", " cancelled", " four times", " daemon killed", " shim killed"}[d]
}

// operation is one step of a run.
type operation struct {
	verb           verb
	pod, container int
	short          bool // of create: the container ends by itself
	with           disturbance
	after          int // ms from the begin of the operation to the disturbance
}

func (o operation) String() string {
	s := fmt.Sprintf("%s p%d", o.verb, o.pod)
	if o.verb >= create {
		s += fmt.Sprintf(" c%d", o.container)
	}
	if o.verb == create && o.short {
		s += " short"
	}
	if o.with != nothing {
		s += fmt.Sprintf("%s@%dms", o.with, o.after)
	}
	return s
}

// plan is a random run. Operations that make are as frequent as those that end, so that states are deep.
func plan(seed uint64, steps int) []operation {
	r := rand.New(rand.NewPCG(seed, seed)) //nolint:gosec // repeatable on purpose
	deal := []verb{
		runSandbox, runSandbox, runSandbox, stopSandbox, removeSandbox, create, create, create, start, start, start, start,
		stopContainer, stopContainer, removeContainer, execSync, execSync,
	}
	ops := make([]operation, steps)
	for i := range ops {
		o := operation{verb: deal[r.IntN(len(deal))], pod: r.IntN(modelPods), container: r.IntN(modelContainers), short: r.IntN(3) == 0}
		if r.IntN(4) == 0 {
			o.with, o.after = disturbance(1+r.IntN(int(disturbedBy)-1)), r.IntN(12)
		}
		ops[i] = o
	}
	return ops
}

// modelContainer is what a container is known to be.
type modelContainer struct {
	state state
	id    string
	short bool
	codes []int32 // it may have, once exited
}

// modelPod is what a pod is known to be.
type modelPod struct {
	state      state
	id         string
	attempt    uint32
	containers [modelContainers]modelContainer
}

// expect says with which codes an operation may end, and makes the state what it is after success.
func (p *modelPod) expect(o operation) []codes.Code {
	c := &p.containers[o.container]
	switch o.verb {
	case runSandbox:
		if p.state == notReady {
			return []codes.Code{codes.AlreadyExists}
		}
	case create:
		switch {
		case p.state == absent:
			return []codes.Code{codes.NotFound}
		case c.state != absent && c.short != o.short:
			return []codes.Code{codes.AlreadyExists} // the same name, another container
		case c.state != absent:
			return []codes.Code{codes.OK, codes.AlreadyExists}
		case p.state == notReady:
			return []codes.Code{codes.FailedPrecondition}
		}
	case start:
		switch {
		case c.state == absent:
			return []codes.Code{codes.NotFound}
		case c.state != created || p.state != ready:
			return []codes.Code{codes.FailedPrecondition}
		}
	case execSync:
		switch {
		case c.state == absent:
			return []codes.Code{codes.NotFound}
		case c.state == running && c.short:
			return []codes.Code{codes.OK, codes.FailedPrecondition}
		case c.state != running:
			return []codes.Code{codes.FailedPrecondition}
		}
	}
	return []codes.Code{codes.OK}
}

// succeed makes the state what it is after success. ids are the caller's to fill in.
func (p *modelPod) succeed(o operation) {
	c := &p.containers[o.container]
	switch o.verb {
	case runSandbox:
		p.state = ready
	case stopSandbox:
		p.halt()
	case removeSandbox:
		if p.state != absent {
			*p = modelPod{attempt: p.attempt + 1}
		}
	case create:
		if c.state == absent {
			*c = modelContainer{state: created, short: o.short}
		}
	case start:
		c.state, c.codes = running, []int32{longCode}
		if c.short {
			c.codes = []int32{shortCode}
		}
	case stopContainer:
		if c.state == running {
			c.state = exited
			c.codes = append(c.codes, 137) // it may not have set its trap yet
		}
	case removeContainer:
		*c = modelContainer{}
	}
}

// halt is the end of a pod's containers with their pod.
func (p *modelPod) halt() {
	if p.state == absent {
		return
	}
	p.state = notReady
	for i := range p.containers {
		if c := &p.containers[i]; c.state == running {
			c.state = exited
			c.codes = append(slices.Clone(c.codes), 137)
		}
	}
}
