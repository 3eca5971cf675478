package kubenode

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
)

// Owned is the annotation that lists the labels which are ours, so that those which are no longer true are taken away
// and nobody else's are, by whichever process comes after this one.
const Owned = "gpu.berth-project/labels"

// Compile is the merge patch that makes the node's labels of ours what want says, and nil if they are that already.
// A label that somebody else has set to another value is taken over: it describes the same hardware.
func Compile(have Node, want map[string]string) ([]byte, error) {
	labels := map[string]any{} // nil takes one away
	for k, v := range want {
		if old, ok := have.Labels[k]; !ok || old != v {
			labels[k] = v
		}
	}
	for k := range strings.SplitSeq(have.Annotations[Owned], ",") {
		if _, ours := want[k]; !ours {
			if _, there := have.Labels[k]; there {
				labels[k] = nil
			}
		}
	}
	owned := strings.Join(slices.Sorted(maps.Keys(want)), ",")
	if len(labels) == 0 && have.Annotations[Owned] == owned {
		return nil, nil
	}
	annotations := map[string]any{Owned: owned}
	if owned == "" {
		annotations[Owned] = nil
	}
	return json.Marshal(map[string]any{"metadata": map[string]any{"labels": labels, "annotations": annotations}})
}
