package pod

import (
	"errors"
	"fmt"
	"testing"
)

// TestNewerRecord: what a newer daemon wrote is refused, by every decoder, as that and nothing else.
func TestNewerRecord(t *testing.T) {
	b := fmt.Appendf(nil, `{"version": %d, "id": "x"}`, recordVersion+1)
	if _, _, err := decodePod(b); !errors.Is(err, errNewer) {
		t.Errorf("a pod's: %v", err)
	}
	if _, _, err := decodeContainer(b); !errors.Is(err, errNewer) {
		t.Errorf("a container's: %v", err)
	}
	if _, _, err := decodePod([]byte(`{"version": 1, "id":`)); err == nil || errors.Is(err, errNewer) {
		t.Errorf("a torn one: %v", err)
	}
}
