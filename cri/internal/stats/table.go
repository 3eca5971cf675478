package stats

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/berth-project/berth/cri/internal/cgroup"
)

func seconds(ns uint64) uint64 { return ns / 1e9 }

func finite(n uint64) uint64 {
	if n == math.MaxUint64 {
		return 0
	}
	return n
}

// containerMetrics is the table of what a container has. Values are whole numbers in the CRI, so times that
// cAdvisor gives as fractions of a second are cut.
func containerMetrics() []metric {
	return slices.Concat(cpuMetrics(), memoryMetrics(), fileMetrics(), lifeMetrics(), specMetrics(), pressureMetrics())
}

func gauge(name, help string, v func(reading) uint64) metric {
	return metric{name: name, help: help, value: v}
}

func count(name, help string, v func(reading) uint64) metric {
	return metric{name: name, help: help, counter: true, value: v}
}

func fault(kind string, v func(reading) uint64) metric {
	return metric{
		name: "container_memory_failures_total", help: "Cumulative count of memory allocation failures.", counter: true, value: v,
		extra: []string{"failure_type", "scope"}, with: []string{kind, "container"},
	}
}

func perDevice(name, help string, v func(cgroup.DeviceIO) uint64) metric {
	return metric{name: name, help: help, counter: true, extra: []string{"device"}, rows: func(r reading) (all []row) {
		for _, d := range r.Devices {
			all = append(all, row{[]string{deviceName(d)}, v(d)})
		}
		return all
	}}
}

func huge(name, help string, v func(cgroup.HugePages) uint64) metric {
	return metric{name: name, help: help, extra: []string{"pagesize"}, rows: func(r reading) (all []row) {
		for _, h := range r.Huge {
			all = append(all, row{[]string{h.Size}, v(h)})
		}
		return all
	}}
}

func cpuMetrics() []metric {
	return []metric{
		count("container_cpu_user_seconds_total", "Cumulative user cpu time consumed in seconds.", func(r reading) uint64 { return seconds(r.CPUUser) }),
		count("container_cpu_system_seconds_total", "Cumulative system cpu time consumed in seconds.", func(r reading) uint64 { return seconds(r.CPUSystem) }),
		{
			name: "container_cpu_usage_seconds_total", help: "Cumulative cpu time consumed in seconds.", counter: true,
			value: func(r reading) uint64 { return seconds(r.CPUUsage) }, extra: []string{"cpu"}, with: []string{"total"},
		},
		count("container_cpu_cfs_periods_total", "Number of elapsed enforcement period intervals.", func(r reading) uint64 { return r.Periods }),
		count("container_cpu_cfs_throttled_periods_total", "Number of throttled period intervals.", func(r reading) uint64 { return r.Throttled }),
		count("container_cpu_cfs_throttled_seconds_total", "Total time duration the container has been throttled.", func(r reading) uint64 { return seconds(r.ThrottledTime) }),
	}
}

func memoryMetrics() []metric {
	return []metric{
		huge("container_hugetlb_usage_bytes", "Current hugepage usage in bytes.", func(h cgroup.HugePages) uint64 { return h.Usage }),
		huge("container_hugetlb_max_usage_bytes", "Maximum hugepage usage recorded in bytes.", func(h cgroup.HugePages) uint64 { return h.Max }),
		gauge("container_memory_kernel_usage", "Size of kernel memory allocated in bytes.", func(r reading) uint64 { return r.KernelMemory }),
		gauge("container_memory_total_active_file_bytes", "Current total active file in bytes.", func(r reading) uint64 { return r.ActiveFile }),
		gauge("container_memory_total_inactive_file_bytes", "Current total inactive file in bytes.", func(r reading) uint64 { return r.InactiveFile }),
		gauge("container_memory_cache", "Number of bytes of page cache memory.", func(r reading) uint64 { return r.Cache }),
		gauge("container_memory_rss", "Size of RSS in bytes.", func(r reading) uint64 { return r.RSS }),
		gauge("container_memory_mapped_file", "Size of memory mapped files in bytes.", func(r reading) uint64 { return r.MappedFile }),
		gauge("container_memory_swap", "Container swap usage in bytes.", func(r reading) uint64 { return r.SwapUsage }),
		gauge("container_memory_usage_bytes", "Current memory usage in bytes, including all memory regardless of when it was accessed.", func(r reading) uint64 { return r.MemoryUsage }),
		gauge("container_memory_max_usage_bytes", "Maximum memory usage recorded in bytes.", func(r reading) uint64 { return r.MaxUsage }),
		gauge("container_memory_working_set_bytes", "Current working set in bytes.", func(r reading) uint64 { return r.WorkingSet() }),
		count("container_memory_failcnt", "Number of memory usage hits limits.", func(r reading) uint64 { return r.MemoryFailures }),
		fault("pgfault", func(r reading) uint64 { return r.PageFaults }),
		fault("pgmajfault", func(r reading) uint64 { return r.MajorFaults }),
		count("container_oom_events_total", "Count of out of memory events observed for the container.", func(r reading) uint64 { return r.OOMKills }),
	}
}

func fileMetrics() []metric {
	return []metric{
		{
			name: "container_blkio_device_usage_total", help: "Blkio device bytes usage.", counter: true,
			extra: []string{"device", "major", "minor", "operation"}, rows: blkio,
		},
		perDevice("container_fs_reads_bytes_total", "Cumulative count of bytes read.", func(d cgroup.DeviceIO) uint64 { return d.ReadBytes }),
		perDevice("container_fs_reads_total", "Cumulative count of reads completed.", func(d cgroup.DeviceIO) uint64 { return d.Reads }),
		perDevice("container_fs_writes_bytes_total", "Cumulative count of bytes written.", func(d cgroup.DeviceIO) uint64 { return d.WriteBytes }),
		perDevice("container_fs_writes_total", "Cumulative count of writes completed.", func(d cgroup.DeviceIO) uint64 { return d.Writes }),
		gauge("container_file_descriptors", "Number of open file descriptors for the container.", func(r reading) uint64 { return r.files.open }),
		gauge("container_sockets", "Number of open sockets for the container.", func(r reading) uint64 { return r.files.sockets }),
		{
			name: "container_ulimits_soft", help: "Soft ulimit values for the container root process. Unlimited is 0.",
			value: func(r reading) uint64 { return r.files.limit }, extra: []string{"ulimit"}, with: []string{"max_open_files"},
		},
		gauge("container_fs_usage_bytes", "Number of bytes that are consumed by the container on its writable layer.", func(r reading) uint64 { return r.size.bytes }),
		gauge("container_fs_inodes_total", "Number of inodes in its writable layer.", func(r reading) uint64 { return r.size.inodes }),
	}
}

func lifeMetrics() []metric {
	return []metric{
		gauge("container_processes", "Number of processes running inside the container.", func(r reading) uint64 { return r.Pids }),
		gauge("container_threads", "Number of threads running inside the container.", func(r reading) uint64 { return r.Pids }),
		gauge("container_threads_max", "Maximum number of threads allowed inside the container, 0 if unlimited.", func(r reading) uint64 { return finite(r.PidsLimit) }),
		gauge("container_start_time_seconds", "Start time of the container since unix epoch in seconds.", func(r reading) uint64 { return uint64(max(r.started.Unix(), 0)) }),
		gauge("container_last_seen", "Last time a container was seen.", func(reading) uint64 { return uint64(time.Now().Unix()) }),
	}
}

func specMetrics() []metric {
	return []metric{
		gauge("container_spec_memory_reservation_limit_bytes", "Memory reservation limit for the container.", reservation),
		gauge("container_spec_cpu_period", "CPU period of the container.", func(r reading) uint64 { return uint64(max(r.limits.GetCpuPeriod(), 0)) }),
		gauge("container_spec_cpu_quota", "CPU quota of the container.", func(r reading) uint64 { return uint64(max(r.limits.GetCpuQuota(), 0)) }),
		gauge("container_spec_cpu_shares", "CPU share of the container.", func(r reading) uint64 { return uint64(max(r.limits.GetCpuShares(), 0)) }),
		gauge("container_spec_memory_limit_bytes", "Memory limit for the container.", func(r reading) uint64 { return finite(r.MemoryLimit) }),
		gauge("container_spec_memory_swap_limit_bytes", "Memory swap limit for the container.", func(r reading) uint64 { return uint64(max(r.limits.GetMemorySwapLimitInBytes(), 0)) }),
	}
}

func pressureMetrics() []metric {
	return []metric{
		count("container_pressure_cpu_waiting_seconds_total", "Total time duration tasks in the container have waited due to CPU congestion.", func(r reading) uint64 { return r.CPU.Some.Total / 1e6 }),
		count("container_pressure_cpu_stalled_seconds_total", "Total time duration no tasks in the container could make progress due to CPU congestion.", func(r reading) uint64 { return r.CPU.Full.Total / 1e6 }),
		count("container_pressure_memory_waiting_seconds_total", "Total time duration tasks in the container have waited due to memory congestion.", func(r reading) uint64 { return r.Memory.Some.Total / 1e6 }),
		count("container_pressure_memory_stalled_seconds_total", "Total time duration no tasks in the container could make progress due to memory congestion.", func(r reading) uint64 { return r.Memory.Full.Total / 1e6 }),
		count("container_pressure_io_waiting_seconds_total", "Total time duration tasks in the container have waited due to IO congestion.", func(r reading) uint64 { return r.IO.Some.Total / 1e6 }),
		count("container_pressure_io_stalled_seconds_total", "Total time duration no tasks in the container could make progress due to IO congestion.", func(r reading) uint64 { return r.IO.Full.Total / 1e6 }),
	}
}

// blkio is the bytes of every device by operation.
func blkio(r reading) (all []row) {
	for _, d := range r.Devices {
		name, major, minor := deviceName(d), strconv.FormatUint(d.Major, 10), strconv.FormatUint(d.Minor, 10)
		all = append(all, row{[]string{name, major, minor, "Read"}, d.ReadBytes}, row{[]string{name, major, minor, "Write"}, d.WriteBytes})
	}
	return all
}

// deviceName is a block device's path, from sysfs, or its numbers if it has gone.
func deviceName(d cgroup.DeviceIO) string {
	to, err := os.Readlink(fmt.Sprintf("/sys/dev/block/%d:%d", d.Major, d.Minor))
	if err != nil {
		return fmt.Sprintf("%d:%d", d.Major, d.Minor)
	}
	return "/dev/" + filepath.Base(to)
}

// reservation is memory.min or memory.low as the kubelet asks for it (MemoryQoS), in the unified map.
func reservation(r reading) uint64 {
	for _, key := range []string{"memory.low", "memory.min"} {
		if n, err := strconv.ParseUint(r.limits.GetUnified()[key], 10, 64); err == nil {
			return n
		}
	}
	return 0
}
