// Package alloc chooses which devices a container gets: the ones that are best connected, and among equals the ones
// that leave the best connected rest. It is pure.
//
// Exclusive devices are chosen exactly: a depth-first search over all sets of the size asked for, with running sums
// and a bound, visits at most the 12,870 sets of 8 of 16 in well under a millisecond. Shares of a GPU and MIG
// instances are chosen by how full their GPU is (Packed, Spread), which needs no search.
package alloc

import (
	"cmp"
	"slices"

	"github.com/berth-project/berth/deviceplugin/internal/inventory"
	"github.com/berth-project/berth/proto/errs"
)

// Device is one thing that can be given away.
type Device struct {
	ID  string // the kubelet's name for it
	GPU string // UUID of the physical GPU it is on
}

// Policy says how shares of GPUs are spread.
type Policy string

// The policies.
const (
	// Packed fills a GPU that is in use before it takes a free one.
	Packed Policy = "packed"
	// Spread takes the GPU with the smallest part in use.
	Spread Policy = "spread"
)

// Request is one container's.
type Request struct {
	// All are the resource's devices, in their order; Available those that are free, Must (a part of Available)
	// those that have to be among the chosen.
	All       []Device
	Available []string
	Must      []string
	Size      int
	Policy    Policy
	// Score is the worth of two different GPUs in one container.
	Score func(a, b string) int
}

// searchLimit bounds the search over more than 16 GPUs, which no machine has yet: after so many sets the best one
// so far is taken. All 601,080,390 sets of 16 of 32 would take a minute.
const searchLimit = 4 << 20

// Choose returns Size ids in the order of All. What is unknown, there twice or impossible is InvalidArgument.
func Choose(r Request) ([]string, error) {
	avail, must, err := r.check()
	if err != nil {
		return nil, err
	}
	var picked []Device
	if shared(avail) {
		picked = pickShares(r, avail, must)
	} else {
		picked = search(avail, must, r.Size, r.Score)
	}
	order := map[string]int{}
	for i, d := range r.All {
		order[d.ID] = i
	}
	slices.SortFunc(picked, func(a, b Device) int { return cmp.Compare(order[a.ID], order[b.ID]) })
	ids := make([]string, len(picked))
	for i, d := range picked {
		ids[i] = d.ID
	}
	return ids, nil
}

// check resolves ids into devices, those of avail in the order of All.
func (r Request) check() (avail []Device, must map[string]bool, err error) {
	known, free := map[string]bool{}, map[string]bool{}
	for _, d := range r.All {
		known[d.ID] = true
	}
	for _, id := range r.Available {
		if !known[id] {
			return nil, nil, errs.InvalidArgument.Errorf("available device %q is not one of this resource's %d", id, len(known))
		}
		if free[id] {
			return nil, nil, errs.InvalidArgument.Errorf("available device %q is named twice", id)
		}
		free[id] = true
	}
	must = map[string]bool{}
	for _, id := range r.Must {
		if !free[id] || must[id] {
			return nil, nil, errs.InvalidArgument.Errorf("device %q must be included and is not available, or is named twice", id)
		}
		must[id] = true
	}
	if r.Size < 1 || r.Size > len(free) || len(must) > r.Size {
		return nil, nil, errs.InvalidArgument.Errorf("%d devices are asked for, %d are available and %d must be included", r.Size, len(free), len(must))
	}
	for _, d := range r.All {
		if free[d.ID] {
			avail = append(avail, d)
		}
	}
	return avail, must, nil
}

// shared says that two devices are on one GPU.
func shared(ds []Device) bool {
	seen := map[string]bool{}
	for _, d := range ds {
		if seen[d.GPU] {
			return true
		}
		seen[d.GPU] = true
	}
	return false
}

// shares is the state of choosing devices of which several are on one GPU.
type shares struct {
	Request
	avail, picked []Device
	// by GPU: how many devices it has, how many of them are free, how many are in picked
	total, free, mine map[string]int
}

// pickShares takes devices one by one. Under Spread a container that asks for several gets them on different GPUs
// while there are any: two time slices of one GPU are no more than one. Packed keeps them together.
func pickShares(r Request, avail []Device, must map[string]bool) []Device {
	s := &shares{Request: r, avail: slices.Clone(avail), total: map[string]int{}, free: map[string]int{}, mine: map[string]int{}}
	for _, d := range r.All {
		s.total[d.GPU]++
	}
	for _, d := range avail {
		s.free[d.GPU]++
	}
	for i := 0; i < len(s.avail); {
		if must[s.avail[i].ID] {
			s.take(i)
			continue
		}
		i++
	}
	for len(s.picked) < r.Size {
		best := 0
		for i := 1; i < len(s.avail); i++ {
			if s.better(s.avail[i].GPU, s.avail[best].GPU) {
				best = i
			}
		}
		s.take(best)
	}
	return s.picked
}

func (s *shares) take(i int) {
	d := s.avail[i]
	s.picked, s.avail = append(s.picked, d), slices.Delete(s.avail, i, i+1)
	s.free[d.GPU]--
	s.mine[d.GPU]++
}

// better compares two GPUs as the home of the next share.
func (s *shares) better(a, b string) bool {
	if a == b {
		return false
	}
	near := cmp.Compare(s.near(a), s.near(b))
	if s.Policy == Packed {
		return cmp.Or(cmp.Compare(s.used(a), s.used(b)), near) > 0
	}
	return cmp.Or(cmp.Compare(s.mine[b], s.mine[a]), cmp.Compare(s.used(b), s.used(a)), near) > 0
}

// used is the part of a GPU's devices that is taken, in thousandths.
func (s *shares) used(g string) int { return (s.total[g] - s.free[g]) * 1000 / s.total[g] }

// near is a GPU's worth to those that were picked.
func (s *shares) near(g string) (sum int) {
	for _, p := range s.picked {
		if p.GPU != g {
			sum += s.Score(p.GPU, g)
		}
	}
	return sum
}

// Score is the worth of two GPUs together: NVLink before everything, then the PCI Express path. One NVLink is worth
// more than any path, so that link counts decide first and paths among equals.
func Score(n *inventory.Node) func(a, b string) int {
	worth := map[inventory.Path]int{}
	for i, p := range inventory.Paths() {
		worth[p] = 6 - i
	}
	table := map[[2]string]int{}
	for _, l := range n.Links {
		s := l.NVLinks*10 + worth[l.Path]
		table[[2]string{l.A, l.B}], table[[2]string{l.B, l.A}] = s, s
	}
	return func(a, b string) int {
		if s, ok := table[[2]string{a, b}]; ok {
			return s
		}
		return worth[inventory.PathSystem]
	}
}
