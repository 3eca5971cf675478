package nearest

import "testing"

func TestWord(t *testing.T) {
	known := []string{"resources.name", "resources.replicas", "health.poll_ms"}
	for word, want := range map[string]string{"resource.replica": "resources.replicas", "health.poll": "health.poll_ms"} {
		if got := Word(word, known); got != want {
			t.Errorf("%q: %q, want %q", word, got, want)
		}
	}
	if Word("x", nil) != "" {
		t.Error("something is near in nothing")
	}
}
