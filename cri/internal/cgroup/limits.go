package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-project/berth/proto/errs"
)

// setting is one file to write. Those with optional set may be missing (a controller that is not there).
type setting struct {
	controller, file, value string
	optional                bool
}

// Set applies the limits of an OCI runtime spec (config-linux.md, "Control groups") to a group in which nothing runs yet:
// the first limit that the kernel refuses is the error, and those before it stay. Change is for others. A nil field is
// left as it is.
func (l *Layout) Set(path string, r *specs.LinuxResources) error {
	all, err := l.compile(path, r)
	if err != nil {
		return err
	}
	for _, s := range all {
		if err := l.apply(path, s); err != nil {
			return fmt.Errorf("cgroup %s: %w", path, err)
		}
	}
	return nil
}

// compile is what to write, in this order.
func (l *Layout) compile(path string, r *specs.LinuxResources) ([]setting, error) {
	switch {
	case r == nil:
		return nil, nil
	case l.V2:
		return compileV2(r), nil
	case len(r.Unified) > 0:
		return nil, errs.FailedPrecondition.Errorf("cgroup %s: unified limits %v need cgroup v2, this node has v1 controllers", path, slices.Sorted(maps.Keys(r.Unified)))
	}
	return l.compileV1(path, r), nil
}

func (l *Layout) fileOf(path string, s setting) string {
	mount := l.V1[s.controller]
	if mount == "" {
		mount = l.Unified
	}
	return filepath.Join(mount+path, s.file)
}

func (l *Layout) apply(path string, s setting) error {
	err := write(l.fileOf(path, s), s.value)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist) && s.optional:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return errs.FailedPrecondition.Errorf("%s: the %s controller is not available here: %w", s.file, s.controller, err)
	case errors.Is(err, unix.EBUSY) && s.controller == "memory":
		return errs.ResourceExhausted.Errorf("%s: more than that is in use: %w", s.file, err)
	case errors.Is(err, unix.EINVAL):
		return errs.InvalidArgument.Errorf("%s: %w", s.file, err)
	}
	return fmt.Errorf("%s: %w", s.file, err)
}

func itoa[T int64 | uint64 | uint32](v T) string { return fmt.Sprint(v) }

func max2(v int64) string {
	if v <= 0 {
		return "max"
	}
	return itoa(v)
}

// compileV1 orders memory and memory+swap so that the kernel's rule limit <= memsw holds at each step.
func (l *Layout) compileV1(path string, r *specs.LinuxResources) []setting {
	var all []setting
	add := func(ctrl, file, value string, optional bool) { all = append(all, setting{ctrl, file, value, optional}) }
	if m := r.Memory; m != nil {
		all = append(all, l.memoryV1(path, m)...)
		if m.Reservation != nil {
			add("memory", "memory.soft_limit_in_bytes", itoa(*m.Reservation), false)
		}
	}
	if c := r.CPU; c != nil {
		if c.Shares != nil && *c.Shares > 0 {
			add("cpu", "cpu.shares", itoa(*c.Shares), false)
		}
		if c.Period != nil && *c.Period > 0 {
			add("cpu", "cpu.cfs_period_us", itoa(*c.Period), false)
		}
		if c.Quota != nil && *c.Quota != 0 {
			add("cpu", "cpu.cfs_quota_us", itoa(*c.Quota), false)
		}
		if c.Cpus != "" {
			add("cpuset", "cpuset.cpus", c.Cpus, false)
		}
		if c.Mems != "" {
			add("cpuset", "cpuset.mems", c.Mems, false)
		}
	}
	if r.Pids != nil && r.Pids.Limit != nil {
		add("pids", "pids.max", max2(*r.Pids.Limit), false)
	}
	for _, h := range r.HugepageLimits {
		// v1 has hugetlb.<size>.limit_in_bytes; where the controller is on the unified tree it is .max
		if l.V1["hugetlb"] != "" {
			add("hugetlb", "hugetlb."+h.Pagesize+".limit_in_bytes", itoa(h.Limit), true)
		} else {
			add("hugetlb", "hugetlb."+h.Pagesize+".max", itoa(h.Limit), true)
		}
	}
	return all
}

func (l *Layout) memoryV1(path string, m *specs.LinuxMemory) []setting {
	if m.Limit == nil || *m.Limit == 0 {
		return nil
	}
	limit := setting{"memory", "memory.limit_in_bytes", itoa(*m.Limit), false}
	if m.Swap == nil || *m.Swap == 0 {
		return []setting{limit}
	}
	swap := setting{"memory", "memory.memsw.limit_in_bytes", itoa(*m.Swap), true}
	cur, err := readUint(filepath.Join(l.V1["memory"]+path, "memory.memsw.limit_in_bytes"))
	if err == nil && (*m.Limit < 0 || uint64(*m.Limit) > cur) { // raise the outer one first
		return []setting{swap, limit}
	}
	return []setting{limit, swap}
}

func compileV2(r *specs.LinuxResources) []setting {
	var all []setting
	add := func(ctrl, file, value string, optional bool) { all = append(all, setting{ctrl, file, value, optional}) }
	if m := r.Memory; m != nil {
		if m.Limit != nil && *m.Limit != 0 {
			add("memory", "memory.max", max2(*m.Limit), false)
			if m.Swap != nil && *m.Swap != 0 { // OCI's swap is memory+swap
				add("memory", "memory.swap.max", swapV2(*m.Limit, *m.Swap), true)
			}
		}
		if m.Reservation != nil {
			add("memory", "memory.low", max2(*m.Reservation), false)
		}
	}
	if c := r.CPU; c != nil {
		if c.Shares != nil && *c.Shares > 0 {
			add("cpu", "cpu.weight", itoa(weight(*c.Shares)), false)
		}
		if q := quotaV2(c); q != "" {
			add("cpu", "cpu.max", q, false)
		}
		if c.Cpus != "" {
			add("cpuset", "cpuset.cpus", c.Cpus, false)
		}
		if c.Mems != "" {
			add("cpuset", "cpuset.mems", c.Mems, false)
		}
	}
	if r.Pids != nil && r.Pids.Limit != nil {
		add("pids", "pids.max", max2(*r.Pids.Limit), false)
	}
	for _, h := range r.HugepageLimits {
		add("hugetlb", "hugetlb."+h.Pagesize+".max", itoa(h.Limit), true)
		add("hugetlb", "hugetlb."+h.Pagesize+".rsvd.max", itoa(h.Limit), true)
	}
	for _, k := range slices.Sorted(maps.Keys(r.Unified)) {
		ctrl, _, _ := strings.Cut(k, ".")
		add(ctrl, k, r.Unified[k], false)
	}
	return all
}

func swapV2(limit, swap int64) string {
	if swap < 0 || limit < 0 {
		return "max"
	}
	return itoa(max(swap-limit, 0))
}

func quotaV2(c *specs.LinuxCPU) string {
	if c.Quota == nil && c.Period == nil {
		return ""
	}
	q, p := "max", uint64(100_000)
	if c.Period != nil && *c.Period > 0 {
		p = *c.Period
	}
	if c.Quota != nil && *c.Quota > 0 {
		q = itoa(*c.Quota)
	}
	return q + " " + itoa(p)
}

// weight converts cpu.shares (2–262144) to cpu.weight (1–10000) by runtime-spec's formula.
func weight(shares uint64) uint64 {
	shares = min(max(shares, 2), 262144)
	return 1 + ((shares-2)*9999)/262142
}

// ValidUnified says whether a unified key may be written: a plain file name of a controller.
func ValidUnified(key string) error {
	if key == "" || strings.ContainsAny(key, "/\x00\n") || strings.HasPrefix(key, "cgroup.") || !strings.Contains(key, ".") {
		return errs.InvalidArgument.Errorf("unified key %q: want a controller's file such as memory.high", key)
	}
	return nil
}

func readUint(file string) (uint64, error) {
	s, err := read(file)
	if err != nil {
		return 0, err
	}
	if s == "max" {
		return 1<<63 - 1, nil
	}
	return strconv.ParseUint(s, 10, 64)
}

// OOMFile is the file that counts a group's OOM kills: memory.events (v2) or memory.oom_control (v1).
func (l *Layout) OOMFile(path string) string {
	if l.V2 {
		return l.Unified + path + "/memory.events"
	}
	return l.V1["memory"] + path + "/memory.oom_control"
}
