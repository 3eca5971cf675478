package test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/berth-project/berth/cni/internal/podnet"
)

// TestStorm runs ADD and DEL from 16 processes at a time, kills every tenth at a random point, and watches that no
// address has two living owners.
func TestStorm(t *testing.T) {
	n := newNode(t)
	conf := n.conf("1.1.0", `,"ranges":[{"subnet":"10.99.0.0/26"}]`)
	points := podnet.Failpoints()
	var mu sync.Mutex
	owner := map[string]string{} // guarded by mu: address to container, from ADD's answer to DEL's start
	killed := 0
	var wg sync.WaitGroup
	for w := range 16 {
		rng := rand.New(rand.NewPCG(7, uint64(w)))
		s := newNS(t)
		wg.Go(func() {
			for i := range 12 {
				c := call{verb: "ADD", id: fmt.Sprintf("w%di%d", w, i), netns: s.Path(), conf: conf}
				c.env = fate(rng, points)
				out, err := n.run(c)
				mine := ""
				if err == nil {
					mine = addressIn(string(out))
					mu.Lock()
					if o, dup := owner[mine]; dup {
						t.Errorf("%s belongs to %s and %s", mine, o, c.id)
					}
					owner[mine] = c.id
					mu.Unlock()
				} else if !errors.Is(err, errKilled) {
					t.Errorf("ADD %s: %v", c.id, err)
				}
				if err == nil {
					if _, err := n.run(call{verb: "CHECK", id: c.id, netns: s.Path(), conf: conf}); err != nil {
						t.Errorf("CHECK %s: %v", c.id, err)
					}
				}
				mu.Lock()
				delete(owner, mine)
				if err != nil {
					killed++
				}
				mu.Unlock()
				c.verb, c.env = "DEL", fate(rng, points)
				if _, err := n.run(c); err != nil && !errors.Is(err, errKilled) {
					t.Errorf("DEL %s: %v", c.id, err)
				}
				c.env = nil
				if _, err := n.run(c); err != nil {
					t.Errorf("DEL %s again: %v", c.id, err)
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d of %d ADDs were killed", killed, 16*12)
	if _, err := n.run(call{verb: "STATUS", conf: conf}); err != nil {
		t.Error(err)
	}
	eventually(t, func() bool { return n.census(t) == "" })
}

// fate is the environment of a process that dies one time in ten.
func fate(rng *rand.Rand, points []string) []string {
	if rng.IntN(10) > 0 {
		return nil
	}
	return []string{"BERTH_FAIL=" + points[rng.IntN(len(points))] + "=kill"}
}

func addressIn(result string) string {
	_, rest, _ := strings.Cut(result, `"address":"`)
	a, _, _ := strings.Cut(rest, "/")
	return a
}
