package podnet

import (
	"strings"

	"github.com/berth-project/berth/internal/failpoint"
)

// Failpoints lists the places of this package where a test can end the process.
func Failpoints() []string {
	var out []string
	for _, n := range failpoint.Names() {
		if strings.HasPrefix(n, "cni.") {
			out = append(out, n)
		}
	}
	return out
}
