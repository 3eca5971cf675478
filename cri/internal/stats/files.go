package stats

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// files are what a container's processes have open.
type files struct {
	open, sockets uint64
	limit         uint64 // the soft limit of its first process; 0: unlimited
}

// mostProcesses bounds the work of one reading: descriptors of a fork bomb are not worth counting.
const mostProcesses = 1000

// readFiles looks at /proc. A process that ends meanwhile counts as nothing.
func readFiles(pids []int, first int) files {
	var f files
	for _, pid := range pids[:min(len(pids), mostProcesses)] {
		dir := fmt.Sprintf("/proc/%d/fd", pid)
		fds, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		f.open += uint64(len(fds))
		for _, fd := range fds {
			if to, err := os.Readlink(dir + "/" + fd.Name()); err == nil && strings.HasPrefix(to, "socket:") {
				f.sockets++
			}
		}
	}
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", first))
	if err != nil {
		return f
	}
	for line := range strings.Lines(string(limits)) {
		if rest, ok := strings.CutPrefix(line, "Max open files"); ok {
			if fields := strings.Fields(rest); len(fields) > 0 {
				f.limit, _ = strconv.ParseUint(fields[0], 10, 64) // "unlimited" is 0
			}
		}
	}
	return f
}
