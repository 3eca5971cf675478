// Package critest runs the upstream CRI conformance suite (kubernetes-sigs/cri-tools) against a socket and reads its
// report.
package critest

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Transport is how the suite's exec, attach and port-forward specs stream.
type Transport string

// The transports of the kubelet and of newer clients.
const (
	SPDY      Transport = "SPDY"
	WebSocket Transport = "WebSocket"
)

// Excluded are the specs that cannot pass on any runtime here, by a part of their name, with the reason.
func Excluded() map[string]string {
	return map[string]string{
		"public image with digest": "pulls one fixed digest from a public registry, which a stand-in cannot have",
	}
}

// Skips are the reasons for which a spec may skip itself: facts of the machine.
func Skips() map[string]string {
	return map[string]string{
		"AppArmor":  "no AppArmor in this kernel",
		"benchmark": "a benchmark without parameters: see make bench-cri",
		"SELinux":   "no SELinux in this kernel",
	}
}

// Report is what the suite said of each spec: "passed", "failed" or "skipped".
type Report map[string]string

// Count is how many specs have a state.
func (r Report) Count(state string) int {
	n := 0
	for _, s := range r {
		if s == state {
			n++
		}
	}
	return n
}

// Names are the specs with a state, in order.
func (r Report) Names(state string) []string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(r)) {
		if r[name] == state {
			out = append(out, name)
		}
	}
	return out
}

// Run runs the whole suite. The log and the raw report are written to dir. An error means that the suite did not
// run; failed specs are in the report.
func Run(ctx context.Context, program, socket, dir string, t Transport, focus string) (Report, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	base := filepath.Join(dir, "critest-"+string(t))
	log, err := os.Create(base + ".log")
	if err != nil {
		return nil, err
	}
	defer log.Close() //nolint:errcheck // the suite has it
	skip := strings.Join(slices.Sorted(maps.Keys(Excluded())), "|")
	args := []string{
		"-runtime-endpoint", "unix://" + socket, "-image-endpoint", "unix://" + socket,
		"-ginkgo.no-color", "-ginkgo.v", "-ginkgo.skip", skip, "-ginkgo.json-report", base + ".json", "-ginkgo.timeout", "20m",
	}
	if focus != "" {
		args = append(args, "-ginkgo.focus", focus)
	}
	if t == WebSocket {
		args = append(args, "-websocket-exec", "-websocket-attach", "-websocket-portforward")
	}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdout, cmd.Stderr, cmd.Dir = log, log, dir
	runErr := cmd.Run() // fails when a spec does; the report tells
	r, err := read(base + ".json")
	if err != nil {
		return nil, fmt.Errorf("critest: %w (%w); see %s", err, runErr, log.Name())
	}
	return r, nil
}

func read(file string) (Report, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var suites []struct {
		SpecReports []struct {
			ContainerHierarchyTexts []string
			LeafNodeText, State     string
			LeafNodeType            string
		}
	}
	if err := json.Unmarshal(b, &suites); err != nil {
		return nil, err
	}
	r := Report{}
	for _, s := range suites {
		for _, spec := range s.SpecReports {
			if spec.LeafNodeType != "It" {
				if spec.State != "passed" {
					r[spec.LeafNodeType] = "failed"
				}
				continue
			}
			name := strings.TrimPrefix(strings.Join(append(spec.ContainerHierarchyTexts, spec.LeafNodeText), " "), "[k8s.io] ")
			switch spec.State {
			case "passed", "skipped":
				r[name] = spec.State
			default:
				r[name] = "failed"
			}
		}
	}
	if len(r) == 0 {
		return nil, fmt.Errorf("%s names no spec", file)
	}
	return r, nil
}

// Reason says why a spec was not run, or "" if nothing here explains it.
func Reason(spec string) string {
	for _, table := range []map[string]string{Excluded(), Skips()} {
		for part, why := range table {
			if strings.Contains(spec, part) {
				return why
			}
		}
	}
	return ""
}

// Verdict compares a report with that of a peer (which may be nil): every line is a reason to fail.
func Verdict(ours, peers Report) []string {
	var out []string
	for _, name := range ours.Names("failed") {
		out = append(out, "failed: "+name)
	}
	for _, name := range ours.Names("skipped") {
		if Reason(name) == "" {
			out = append(out, "skipped without a reason: "+name)
		}
	}
	for _, name := range peers.Names("passed") {
		if ours[name] != "passed" && ours[name] != "failed" {
			out = append(out, fmt.Sprintf("the peer passes what is %q here: %s", ours[name], name))
		}
	}
	return out
}
