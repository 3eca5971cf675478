package cgroup

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Stats are a group's present figures. Bytes and nanoseconds; a figure the layout cannot give is 0.
type Stats struct {
	CPUUsage                          uint64 // ns
	CPUUser                           uint64 // ns
	CPUSystem                         uint64 // ns
	Periods, Throttled, ThrottledTime uint64 // CFS bandwidth; the time in ns

	MemoryUsage, MemoryLimit             uint64 // limit is math.MaxUint64 when there is none
	InactiveFile, RSS, Cache, MappedFile uint64
	ActiveFile, KernelMemory             uint64
	PageFaults, MajorFaults              uint64
	MemoryFailures, MaxUsage             uint64
	SwapUsage, SwapLimit                 uint64
	OOMKills                             uint64

	Pids, PidsLimit uint64

	CPU, Memory, IO Pressure

	Devices []DeviceIO // by device, in no order
	Huge    []HugePages
}

// DeviceIO is what a group has read from and written to a block device.
type DeviceIO struct {
	Major, Minor                         uint64
	ReadBytes, WriteBytes, Reads, Writes uint64
}

// HugePages is a group's use of one size of huge pages, "2MB". Max is 0 where the kernel does not keep it (v2).
type HugePages struct {
	Size       string
	Usage, Max uint64 // bytes
}

// Pressure is a PSI file (Documentation/accounting/psi.rst); totals in µs.
type Pressure struct{ Some, Full Stall }

// Stall is one line of it.
type Stall struct {
	Avg10, Avg60, Avg300 float64
	Total                uint64
}

// WorkingSet is the memory that cannot be reclaimed easily, as the kubelet counts it.
func (s Stats) WorkingSet() uint64 {
	if s.MemoryUsage < s.InactiveFile {
		return 0
	}
	return s.MemoryUsage - s.InactiveFile
}

// Read measures a group. A group that is gone is fs.ErrNotExist.
func (l *Layout) Read(path string) (Stats, error) {
	if l.V2 {
		return l.readV2(path)
	}
	return l.readV1(path)
}

// Untouched says that no process was ever in a group: it has none, and has used no time. The unified tree counts that with
// whatever controllers (cpu.stat in cgroup-v2.rst); without that tree nobody knows.
func (l *Layout) Untouched(path string) bool {
	used, known := l.time(path)
	return known && used == 0 && len(l.Pids(path)) == 0
}

// Used says that a process is or was in a group, by its time; without the unified tree by what cpuacct has counted.
func (l *Layout) Used(path string) bool {
	used, known := l.time(path)
	if !known && l.V1["cpuacct"] != "" {
		b, err := os.ReadFile(l.V1["cpuacct"] + path + "/cpuacct.usage") //nolint:gosec // below the mount
		if err == nil && strings.Trim(string(b), "0\n") != "" {
			return true
		}
	}
	return used > 0 || len(l.Pids(path)) > 0
}

// time is what all processes that were ever in a group have used, in microseconds.
func (l *Layout) time(path string) (used uint64, known bool) {
	if l.Unified == "" {
		return 0, false
	}
	cpu, err := keyed(filepath.Join(l.Unified+path, "cpu.stat"))
	if err != nil {
		return 0, false // there is no such group
	}
	used, known = cpu["usage_usec"]
	return used, known
}

func (l *Layout) readV2(path string) (Stats, error) {
	dir := l.Unified + path
	cpu, err := keyed(filepath.Join(dir, "cpu.stat"))
	if err != nil {
		return Stats{}, err
	}
	mem, err := keyed(filepath.Join(dir, "memory.stat"))
	if err != nil {
		return Stats{}, err
	}
	s := Stats{
		CPUUsage: cpu["usage_usec"] * 1000, CPUUser: cpu["user_usec"] * 1000, CPUSystem: cpu["system_usec"] * 1000,
		Periods: cpu["nr_periods"], Throttled: cpu["nr_throttled"], ThrottledTime: cpu["throttled_usec"] * 1000,
		ActiveFile: mem["active_file"], KernelMemory: mem["kernel"], Devices: l.ioV2(dir), Huge: l.hugePages(path),
		InactiveFile: mem["inactive_file"], RSS: mem["anon"], Cache: mem["file"], MappedFile: mem["file_mapped"],
		PageFaults: mem["pgfault"], MajorFaults: mem["pgmajfault"],
		MemoryUsage: number(dir, "memory.current"), MemoryLimit: number(dir, "memory.max"), MaxUsage: number(dir, "memory.peak"),
		SwapUsage: number(dir, "memory.swap.current"), SwapLimit: number(dir, "memory.swap.max"),
		Pids: number(dir, "pids.current"), PidsLimit: number(dir, "pids.max"),
	}
	if ev, err := keyed(filepath.Join(dir, "memory.events")); err == nil {
		s.OOMKills, s.MemoryFailures = ev["oom_kill"], ev["max"]
	}
	l.pressures(path, &s)
	return s, nil
}

func (l *Layout) readV1(path string) (Stats, error) {
	dir := func(ctrl string) string { return l.V1[ctrl] + path }
	mem, err := keyed(filepath.Join(dir("memory"), "memory.stat"))
	if err != nil {
		return Stats{}, err
	}
	s := Stats{
		CPUUsage: number(dir("cpuacct"), "cpuacct.usage"), CPUUser: number(dir("cpuacct"), "cpuacct.usage_user"),
		CPUSystem:  number(dir("cpuacct"), "cpuacct.usage_sys"),
		ActiveFile: mem["total_active_file"], KernelMemory: number(dir("memory"), "memory.kmem.usage_in_bytes"),
		Devices: l.ioV1(dir("blkio")), Huge: l.hugePages(path),
		InactiveFile: mem["total_inactive_file"], RSS: mem["total_rss"], Cache: mem["total_cache"], MappedFile: mem["total_mapped_file"],
		PageFaults: mem["total_pgfault"], MajorFaults: mem["total_pgmajfault"],
		MemoryUsage: number(dir("memory"), "memory.usage_in_bytes"), MemoryLimit: number(dir("memory"), "memory.limit_in_bytes"),
		MaxUsage: number(dir("memory"), "memory.max_usage_in_bytes"), MemoryFailures: number(dir("memory"), "memory.failcnt"),
		SwapUsage: mem["total_swap"],
		Pids:      number(dir("pids"), "pids.current"), PidsLimit: number(dir("pids"), "pids.max"),
	}
	const unlimited = math.MaxInt64 &^ 4095 // PAGE_COUNTER_MAX in bytes
	if s.MemoryLimit >= unlimited {
		s.MemoryLimit = math.MaxUint64
	}
	if oom, err := keyed(filepath.Join(dir("memory"), "memory.oom_control")); err == nil {
		s.OOMKills = oom["oom_kill"]
	}
	if cpu, err := keyed(filepath.Join(dir("cpu"), "cpu.stat")); err == nil {
		s.Periods, s.Throttled, s.ThrottledTime = cpu["nr_periods"], cpu["nr_throttled"], cpu["throttled_time"]
	}
	l.pressures(path, &s)
	return s, nil
}

func (l *Layout) pressures(path string, s *Stats) {
	if l.Unified == "" {
		return
	}
	for file, to := range map[string]*Pressure{"cpu.pressure": &s.CPU, "memory.pressure": &s.Memory, "io.pressure": &s.IO} {
		if b, err := os.ReadFile(l.Unified + path + "/" + file); err == nil { //nolint:gosec // below the mount
			*to = parsePressure(b)
		}
	}
}

func parsePressure(b []byte) Pressure {
	var p Pressure
	for line := range bytes.Lines(b) {
		var kind string
		var s Stall
		if _, err := fmt.Sscanf(string(line), "%s avg10=%f avg60=%f avg300=%f total=%d", &kind, &s.Avg10, &s.Avg60, &s.Avg300, &s.Total); err != nil {
			continue
		}
		if kind == "some" {
			p.Some = s
		} else {
			p.Full = s
		}
	}
	return p
}

// keyed reads a flat keyed file ("key value" lines).
func keyed(file string) (map[string]uint64, error) {
	b, err := os.ReadFile(file) //nolint:gosec // below a cgroup mount
	if err != nil {
		return nil, err
	}
	m := map[string]uint64{}
	for line := range strings.Lines(string(b)) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), " ")
		if n, err := strconv.ParseUint(v, 10, 64); err == nil {
			m[k] = n
		}
	}
	return m, nil
}

// number reads a one-value file; "max" is math.MaxUint64, a missing file 0.
func number(dir, file string) uint64 {
	b, err := os.ReadFile(filepath.Join(dir, file)) //nolint:gosec // below a cgroup mount
	if err != nil {
		return 0
	}
	s := strings.TrimSpace(string(b))
	if s == "max" {
		return math.MaxUint64
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0
	}
	return n
}
