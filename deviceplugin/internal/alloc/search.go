package alloc

import "slices"

// value orders sets: first by the worth inside the set, then by the worth inside what is left, so that a container
// that needs little does not break an island that a larger one will want.
type value struct{ inside, rest int }

func (v value) better(o value) bool {
	return v.inside > o.inside || v.inside == o.inside && v.rest > o.rest
}

// searcher walks all sets of a size in lexicographic order of positions; the first best one wins.
type searcher struct {
	n, size int
	score   []int // n × n
	row     []int // a position's worth to all others
	total   int
	most    int // the largest worth of a pair
	forced  []bool
	// the walk
	set   []int
	best  []int
	value value
	found bool
	seen  int
}

// search chooses size of avail, all of must among them. Every device is on a GPU of its own.
func search(avail []Device, must map[string]bool, size int, score func(a, b string) int) []Device {
	n := len(avail)
	s := &searcher{n: n, size: size, score: make([]int, n*n), row: make([]int, n), forced: make([]bool, n), set: make([]int, 0, size)}
	left := 0
	for i := range n {
		if s.forced[i] = must[avail[i].ID]; s.forced[i] {
			left++
		}
		for j := range i {
			w := score(avail[i].GPU, avail[j].GPU)
			s.score[i*n+j], s.score[j*n+i] = w, w
			s.row[i], s.row[j] = s.row[i]+w, s.row[j]+w
			s.total += w
			s.most = max(s.most, w)
		}
	}
	s.walk(0, left, 0, 0)
	picked := make([]Device, 0, size)
	for _, i := range s.best {
		picked = append(picked, avail[i])
	}
	return picked
}

// walk extends the set by positions from `from` on; left forced ones are still to come, inside is the set's worth
// and rows the sum of its members' rows.
func (s *searcher) walk(from, left, inside, rows int) {
	need := s.size - len(s.set)
	if need == 0 {
		s.seen++
		// rows counts pairs inside twice and pairs cut once: the rest is what neither counts
		if v := (value{inside, s.total - rows + inside}); !s.found || v.better(s.value) {
			s.best, s.value, s.found = slices.Clone(s.set), v, true
		}
		return
	}
	if s.found && s.n > 16 && s.seen >= searchLimit {
		return
	}
	pairs := need*(need-1)/2 + need*len(s.set)
	if s.found && inside+pairs*s.most < s.value.inside {
		return
	}
	for i := from; i <= s.n-need; i++ {
		if s.forced[i] || left < need {
			add := 0
			for _, j := range s.set {
				add += s.score[i*s.n+j]
			}
			next := left
			if s.forced[i] {
				next--
			}
			s.set = append(s.set, i)
			s.walk(i+1, next, inside+add, rows+s.row[i])
			s.set = s.set[:len(s.set)-1]
		}
		if s.forced[i] {
			return // it may not be left out
		}
	}
}
