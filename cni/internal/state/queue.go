package state

import (
	"slices"
	"sync"
	"time"
)

// Turn is how a process that goes on waits for the lock, with others of its own requests. A process that ends with its
// answer has none, and waits in the kernel's queue.
type Turn struct {
	// Wanted says by an error that nobody waits for the answer any more, also once the lock is held.
	Wanted func() error
	// Queue is the process's own, one for each state directory. Nil is no queue: then all requests try for the lock at once,
	// and whoever happens to look at the right moment has it.
	Queue *Queue
}

// Queue lets one request after another try for the lock, in the order of their coming. The zero value is ready.
type Queue struct {
	mu      sync.Mutex
	busy    bool
	moved   time.Time       // when the head changed last
	waiting []chan struct{} // closed when it is its turn
}

// enter waits for its turn and says whether it came. A long queue that moves is no reason to give up: patience counts from
// when it moved last.
func (q *Queue) enter(patience time.Duration) bool {
	q.mu.Lock()
	if !q.busy {
		q.busy, q.moved = true, time.Now()
		q.mu.Unlock()
		return true
	}
	turn := make(chan struct{})
	q.waiting = append(q.waiting, turn)
	left := patience
	q.mu.Unlock()
	for {
		select {
		case <-turn:
			return true
		case <-time.After(left):
		}
		if left = q.still(turn, patience); left <= 0 {
			return false
		}
	}
}

// still is how much longer a turn may be waited for; at none it is taken from the queue.
func (q *Queue) still(turn chan struct{}, patience time.Duration) time.Duration {
	q.mu.Lock()
	defer q.mu.Unlock()
	at := slices.Index(q.waiting, turn)
	if at < 0 { // it has come meanwhile
		return patience
	}
	left := patience - time.Since(q.moved)
	if left <= 0 {
		q.waiting = slices.Delete(q.waiting, at, at+1)
	}
	return left
}

// leave lets the next one try.
func (q *Queue) leave() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.moved = time.Now()
	if q.busy = len(q.waiting) > 0; q.busy {
		close(q.waiting[0])
		q.waiting = q.waiting[1:]
	}
}
