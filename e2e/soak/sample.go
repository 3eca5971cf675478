package soak

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/berth-project/berth/e2e/bench/rig"
	"github.com/berth-project/berth/e2e/harness"
)

// Sample is what the node had at one moment.
type Sample struct {
	At     time.Duration      `json:"at"`   // since the load began, in nanoseconds
	Life   int32              `json:"life"` // which daemon it was, from 0
	Values map[string]float64 `json:"values"`
}

// settled is how long after its start a daemon counts in what is judged within its life: it fills its pools, and pages in its program, first.
const settled = 4 * time.Minute

// watch takes samples until ctx ends. One that an upgrade disturbs is left out.
func (n *node) watch(ctx context.Context, say func(string, ...any)) (all []Sample) {
	next := time.Now().Add(n.Sample)
	for wait(ctx, time.Until(next)) {
		next = next.Add(n.Sample)
		life := n.life.Load()
		values, err := n.look()
		if err != nil || n.life.Load() != life {
			continue
		}
		at := time.Since(n.begin)
		all = append(all, Sample{At: at, Life: life, Values: values})
		if len(all)%6 == 0 {
			v := values
			say("%d lives, %d late; daemon %.1f MiB %g fds %g goroutines; agent %.1f MiB; %g supervisors %.1f MiB; disk %.1f MiB; %g groups, %g mounts, %g namespaces",
				n.tally.lives.Load(), n.tally.late.Load(), v["daemon_rss"]/1024, v["daemon_fds"], v["daemon_goroutines"], v["agent_rss"]/1024,
				v["supervisors"], v["supervisors_pss"]/1024, v["root_bytes"]/1024, v["cgroups"], v["mounts"], v["netns"])
		}
	}
	return all
}

// look takes one sample; sizes are in KiB.
func (n *node) look() (map[string]float64, error) {
	v := map[string]float64{}
	daemon, agent := n.daemon.get().Pid(), n.netd.get().Pid()
	shims, err := n.supervisors()
	all := []error{
		err, process(v, "daemon", daemon), process(v, "agent", agent), process(v, "supervisors", shims...),
		files(v, "root", filepath.Join(n.lab.Dir, "berth")),
		files(v, "state", filepath.Join(n.lab.Run, "berth"), filepath.Join(n.lab.Run, "cni"), filepath.Join(n.lab.Run, "netd"), filepath.Join(n.lab.Run, "netd-root")),
		kernel(v), rules(v),
	}
	v["supervisors"] = float64(len(shims))
	all = append(all, inner(v, filepath.Join(n.lab.Run, "debug.sock")))
	ns, mounts, nerr := spaces(append([]int{daemon, agent}, shims...))
	v["netns"], v["mounts"] = float64(ns), float64(mounts)
	v["cgroups"] = float64(groups(n.lab.Own))
	links, lerr := net.Interfaces()
	v["links"] = float64(len(links))
	return v, errors.Join(append(all, nerr, lerr)...)
}

// supervisors are the pids of the node's shims; a child between fork and exec has its supervisor's name, and is none.
func (n *node) supervisors() ([]int, error) {
	pids, err := harness.CgroupPids(n.lab.Group())
	var all []int
	for _, pid := range pids {
		exe, rerr := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		parent, perr := harness.Parent(pid)
		if rerr == nil && perr == nil && strings.HasPrefix(filepath.Base(exe), "berth-shim") {
			up, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", parent)) // it may have ended
			if !strings.HasPrefix(filepath.Base(up), "berth-shim") {
				all = append(all, pid)
			}
		}
	}
	return all, err
}

// process adds what processes have, together.
func process(v map[string]float64, name string, pids ...int) error {
	pss, err := rig.PSS(pids)
	v[name+"_pss"] = float64(pss >> 10)
	for _, pid := range pids {
		rss, threads, serr := weight(pid)
		fds, ferr := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		err = errors.Join(err, serr, ferr)
		v[name+"_rss"] += rss
		v[name+"_threads"] += threads
		v[name+"_fds"] += float64(len(fds))
	}
	return err
}

// weight is a process's resident memory in KiB and the number of its threads, from proc_pid_status(5).
func weight(pid int) (rss, threads float64, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for l := range strings.Lines(string(b)) {
		_, _ = fmt.Sscanf(l, "VmRSS: %f kB", &rss) // most lines are others
		_, _ = fmt.Sscanf(l, "Threads: %f", &threads)
	}
	if err == nil && rss == 0 {
		err = fmt.Errorf("pid %d has ended", pid)
	}
	return rss, threads, err
}

// files adds how much is on disk below directories, and in how many files; one with several names counts once. What goes
// away meanwhile does not count.
func files(v map[string]float64, name string, dirs ...string) error {
	seen := map[uint64]bool{}
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
			if err != nil {
				return gone(err)
			}
			fi, err := d.Info()
			if err != nil {
				return gone(err)
			}
			if st, ok := fi.Sys().(*syscall.Stat_t); ok && !seen[st.Ino] {
				seen[st.Ino] = true
				v[name+"_inodes"]++
				v[name+"_bytes"] += float64(st.Blocks) / 2
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// spaces are the network namespaces that processes have open or are in, and the mounts in all of their mount namespaces.
func spaces(pids []int) (nets, mounts int, err error) {
	nsets, msets := map[string]bool{}, map[string]bool{}
	for _, pid := range pids {
		links, gerr := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		err = errors.Join(err, gerr)
		tasks, gerr := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/ns/*", pid))
		err = errors.Join(err, gerr)
		for _, l := range append(links, tasks...) {
			to, rerr := os.Readlink(l)
			if rerr != nil {
				continue // closed since
			}
			if strings.HasPrefix(to, "net:[") {
				nsets[to] = true
			}
			if strings.HasPrefix(to, "mnt:[") && strings.HasSuffix(l, "/ns/mnt") && !msets[to] {
				msets[to] = true
				b, _ := os.ReadFile(filepath.Join(filepath.Dir(filepath.Dir(l)), "mountinfo")) // the thread may have ended
				mounts += strings.Count(string(b), "\n")
			}
		}
	}
	return len(nsets), mounts, err
}

// groups are the cgroups at a path and below it, in all hierarchies.
func groups(path string) (count int) {
	roots, _ := filepath.Glob("/sys/fs/cgroup/*" + path) // the pattern is good
	for _, r := range append(roots, "/sys/fs/cgroup"+path) {
		_ = filepath.WalkDir(r, func(_ string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				count++
			}
			return nil
		})
	}
	return count
}

// kernel adds what belongs to the whole machine, others' share with it: unreclaimable slab in KiB, network namespaces.
func kernel(v map[string]float64) error {
	b, err := os.ReadFile("/proc/meminfo")
	for l := range strings.Lines(string(b)) {
		var kib float64
		if k, _ := fmt.Sscanf(l, "SUnreclaim: %f kB", &kib); k == 1 {
			v["machine_slab"] = kib
		}
	}
	slabs, serr := os.ReadFile("/proc/slabinfo")
	for l := range strings.Lines(string(slabs)) {
		var active float64
		if k, _ := fmt.Sscanf(l, "net_namespace %f", &active); k == 1 {
			v["machine_netns"] = active
		}
	}
	return errors.Join(err, serr)
}

// rules counts the lines of the node's nftables.
func rules(v map[string]float64) error {
	out, err := exec.Command("nft", "list", "ruleset").Output()
	v["nft_lines"] = float64(strings.Count(string(out), "\n"))
	procs, gerr := filepath.Glob("/proc/[0-9]*")
	v["processes"] = float64(len(procs)) // the cage has its own process ids
	return errors.Join(err, gerr)
}
