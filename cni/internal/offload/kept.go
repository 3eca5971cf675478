package offload

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/berth-project/berth/internal/atomicfile"
)

// load reads the verdicts of this boot. A file that cannot be read is an error, and no verdict.
func load(path string) (map[string]Verdict, error) {
	all := map[string]Verdict{}
	b, err := os.ReadFile(path) //nolint:gosec // the agent's own
	if errors.Is(err, os.ErrNotExist) {
		return all, nil
	}
	var list []Verdict
	if err == nil {
		err = json.Unmarshal(b, &list)
	}
	if err != nil {
		return all, fmt.Errorf("self-test: %w", err)
	}
	for _, v := range list {
		all[v.Dev] = v
	}
	return all, nil
}

func save(path string, verdicts map[string]Verdict) error {
	var list []Verdict
	for _, v := range verdicts {
		list = append(list, v)
	}
	b, err := json.Marshal(list)
	if err != nil {
		return err
	}
	return atomicfile.Write(path, b, 0o600)
}
