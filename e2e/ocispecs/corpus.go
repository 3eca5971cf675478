package ocispecs

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
)

// corpus is the file that shim/test reads, from the directory of a test package of this module.
const corpus = "../../shim/test/testdata/specs.json"

// addEnv makes Check add what it finds to the corpus: `make oracle-specs`.
const addEnv = "BERTH_ORACLE_SPECS"

// guestEnv says that the suite runs in a virtual machine: another kernel, other facts, and no corpus beside it.
const guestEnv = "BERTH_GUEST"

// Check ends a collection and returns an error if it found a spec that the oracle does not run, and how many distinct
// ones it found.
func Check(c *Collector) (int, error) {
	all, err := c.Stop()
	if err != nil || len(all) == 0 {
		return 0, fmt.Errorf("%d specs collected: %w", len(all), err)
	}
	if os.Getenv(guestEnv) != "" {
		return len(all), nil
	}
	have := map[string]bool{}
	b, err := os.ReadFile(corpus)
	if err != nil && !os.IsNotExist(err) {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		have[strings.Trim(line, "[],\n")] = true
	}
	var missing []string
	for _, s := range all {
		k, err := s.Key()
		if err != nil {
			return 0, err
		}
		if !have[strings.Trim(k, "[],")] {
			missing = append(missing, k)
		}
	}
	if os.Getenv(addEnv) != "" {
		return len(all), add(b, missing)
	}
	var errs []error
	for _, k := range missing {
		errs = append(errs, fmt.Errorf("a spec that the oracle has not compared with runc: `make oracle-specs`, then `go test ./shim/test`\n%s", k))
	}
	return len(all), errors.Join(errs...)
}

// add writes the corpus with more shapes, a shape a line, so that a change is a line of a diff.
func add(old []byte, more []string) error {
	var all []json.RawMessage
	if len(old) > 0 {
		if err := json.Unmarshal(old, &all); err != nil {
			return err
		}
	}
	for _, k := range more {
		all = append(all, json.RawMessage(k))
	}
	slices.SortFunc(all, func(a, b json.RawMessage) int { return bytes.Compare(a, b) })
	var b bytes.Buffer
	for i, k := range all {
		b.WriteString(map[bool]string{true: "[", false: ",\n"}[i == 0])
		b.Write(k)
	}
	b.WriteString("]\n")
	return os.WriteFile(corpus, b.Bytes(), 0o644)
}
