package cgroup

import (
	"errors"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// EnsureExec makes a child group for one exec in the unified tree alone. Without a unified tree there is none.
func (l *Layout) EnsureExec(path string) error {
	if l.Unified == "" {
		return nil
	}
	if err := os.Mkdir(l.Unified+path, 0o755); err != nil && !errors.Is(err, fs.ErrExist) { //nolint:gosec // the mode of every group
		return err
	}
	return nil
}

// Execs are the groups of a container's execs.
func (l *Layout) Execs(container string) (groups []string) {
	if l.Unified == "" {
		return nil
	}
	all, err := os.ReadDir(l.Unified + container)
	if err != nil {
		return nil // there is no such group
	}
	for _, g := range all {
		if strings.HasPrefix(g.Name(), "exec-") {
			groups = append(groups, container+"/"+g.Name())
		}
	}
	return groups
}

// KillExec ends everything in an exec's group. Without a unified tree there is none.
func (l *Layout) KillExec(path string) error {
	if l.Unified == "" {
		return nil
	}
	return l.Kill(path)
}

// RemoveExec removes an exec's group, if nothing runs there any more.
func (l *Layout) RemoveExec(path string) error {
	if l.Unified == "" {
		return nil
	}
	if err := unix.Rmdir(l.Unified + path); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}
