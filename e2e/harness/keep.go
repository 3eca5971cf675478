package harness

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// KeepLogs writes the ends of a lab's logs to w, after a failure. With BERTH_KEEP=DIR in the environment the whole
// logs are copied there.
func (l *Lab) KeepLogs(w io.Writer) {
	files, err := filepath.Glob(filepath.Join(l.Logs(), "*.log"))
	if err != nil {
		return
	}
	more, err := filepath.Glob(filepath.Join(l.Run, "berth", "shims", "*", "log"))
	if err != nil {
		return
	}
	keep := os.Getenv("BERTH_KEEP")
	for _, f := range append(files, more...) {
		b, err := os.ReadFile(f)
		if err != nil {
			fmt.Fprintln(w, err)
			continue
		}
		if keep != "" {
			name := l.Name + strings.ReplaceAll(strings.TrimPrefix(f, l.Run), "/", "-")
			if err := errors.Join(os.MkdirAll(keep, 0o755), os.WriteFile(filepath.Join(keep, name), b, 0o644)); err != nil {
				fmt.Fprintln(w, err)
			}
		}
		lines := strings.Split(strings.TrimSpace(string(b)), "\n")
		fmt.Fprintf(w, "--- the end of %s (BERTH_KEEP=DIR keeps all of it)\n%s\n", f, strings.Join(lines[max(0, len(lines)-15):], "\n"))
	}
}
