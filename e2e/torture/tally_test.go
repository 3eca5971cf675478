package torture

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"sync"
)

// fault sorts: what a client saw that it never should.
const (
	leaks         = "leaks"                 // pieces of what was removed
	restarted     = "containers_restarted"  // that nobody asked for, and pods that lost their address
	wrongExits    = "wrong_exit_codes"      // of containers
	lostLog       = "log_bytes_lost"        // logs that are not what was said, line by line
	startFailures = "daemon_start_failures" // the daemon was not ready within its time
	otherFaults   = "other_faults"          // calls that failed
	daemonKills   = "daemon_kills"
	shimKills     = "shim_kills"
	podLives      = "pod_lives"
	modelSteps    = "model_steps"

	powerCuts       = "power_cuts"
	errnoInjections = "errno_injections"
	pidReuses       = "pid_reuses"
	uninterruptible = "uninterruptible_containers"
	stormCalls      = "duplicate_and_cancelled_calls"
)

// tally counts over all tests of a run.
type tally struct {
	mu    sync.Mutex
	count map[string]int
}

var total = &tally{count: map[string]int{}}

func (t *tally) add(what string, n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.count[what] += n
}

// write adds what this run has counted to the rows of $BERTH_OUT/torture.json, so that one torture may be done in parts.
func (t *tally) write() error {
	out := os.Getenv("BERTH_OUT")
	if out == "" {
		return nil
	}
	type row struct {
		Name  string `json:"name"`
		Unit  string `json:"unit"`
		Berth int    `json:"berth"`
	}
	file := filepath.Join(out, "torture.json")
	var rows, kept []row
	if b, err := os.ReadFile(file); err == nil {
		if err := json.Unmarshal(b, &rows); err != nil {
			return err
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	names := []string{leaks, restarted, wrongExits, lostLog, startFailures, otherFaults, daemonKills, shimKills, podLives, modelSteps, powerCuts, errnoInjections, pidReuses, uninterruptible, stormCalls}
	for _, name := range names {
		r := row{Name: name, Unit: "count", Berth: t.count[name]}
		if i := slices.IndexFunc(rows, func(r row) bool { return r.Name == name }); i >= 0 {
			r.Berth += rows[i].Berth
		}
		kept = append(kept, r)
	}
	for _, r := range rows {
		if !slices.Contains(names, r.Name) {
			kept = append(kept, r)
		}
	}
	b, err := json.MarshalIndent(kept, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(b, '\n'), 0o644)
}
