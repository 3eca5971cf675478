package stats

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/vishvananda/netns"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/cri/internal/cgroup"
	"github.com/berth-project/berth/cri/internal/network"
	"github.com/berth-project/berth/cri/internal/pod"
)

// Pod measures one pod: its own cgroup (the parent of its containers'), its interfaces, its containers.
func (c *Collector) Pod(p *pod.Pod) (*cri.PodSandboxStats, error) {
	now := time.Now()
	out := &cri.PodSandboxStats{
		Attributes: &cri.PodSandboxAttributes{
			Id: p.ID, Metadata: p.Config.GetMetadata(), Labels: p.Config.GetLabels(), Annotations: p.Config.GetAnnotations(),
		},
		Linux: &cri.LinuxPodSandboxStats{},
	}
	for _, ct := range c.pods.ContainersOf(p.ID) {
		if ct.State().CRI() != cri.ContainerState_CONTAINER_RUNNING {
			continue
		}
		if st, err := c.Container(ct); err == nil { // one that ended meanwhile is left out
			out.Linux.Containers = append(out.Linux.Containers, st)
		}
	}
	s, err := c.podGroup(p)
	if err != nil {
		return nil, err
	}
	l := out.Linux
	l.Cpu, l.Memory = c.cpu(p.ID, s, now), memory(s, now)
	l.Io = &cri.IoUsage{Timestamp: now.UnixNano(), Psi: psi(s.IO)}
	l.Process = &cri.ProcessUsage{Timestamp: now.UnixNano(), ProcessCount: value(s.Pids)}
	ifs, err := c.interfaces(p)
	if err != nil {
		return nil, err
	}
	l.Network = &cri.NetworkUsage{Timestamp: now.UnixNano()}
	for _, i := range ifs {
		u := i.usage()
		l.Network.Interfaces = append(l.Network.Interfaces, u)
		if i.name == network.Interface {
			l.Network.DefaultInterface = u
		}
	}
	return out, nil
}

// podGroup reads the pod's own cgroup if the kubelet gave it one, else sums its containers'.
func (c *Collector) podGroup(p *pod.Pod) (cgroup.Stats, error) {
	if p.Config.GetLinux().GetCgroupParent() != "" {
		parent, err := c.pods.Parent(p)
		if err != nil {
			return cgroup.Stats{}, err
		}
		s, err := c.groups.Read(parent)
		if !errors.Is(err, os.ErrNotExist) {
			return s, err
		}
	}
	var sum cgroup.Stats
	for _, ct := range c.pods.ContainersOf(p.ID) {
		g, err := c.pods.Group(ct)
		if err != nil {
			return sum, err
		}
		s, err := c.groups.Read(g)
		if err != nil { // not running
			continue
		}
		sum.CPUUsage += s.CPUUsage
		sum.MemoryUsage += s.MemoryUsage
		sum.InactiveFile += s.InactiveFile
		sum.RSS += s.RSS
		sum.PageFaults += s.PageFaults
		sum.MajorFaults += s.MajorFaults
		sum.Pids += s.Pids
	}
	return sum, nil
}

// counters are one interface's, as /proc/net/dev has them.
type counters struct {
	name   string
	rx, tx direction
}

type direction struct{ bytes, packets, errors, dropped uint64 }

// usage is what the CRI's stats have of it.
func (i counters) usage() *cri.NetworkInterfaceUsage {
	return &cri.NetworkInterfaceUsage{
		Name: i.name, RxBytes: value(i.rx.bytes), RxErrors: value(i.rx.errors), TxBytes: value(i.tx.bytes), TxErrors: value(i.tx.errors),
	}
}

// interfaces reads /proc/thread-self/net/dev inside the pod's network namespace. A pod on the host's network has
// no figures of its own.
func (c *Collector) interfaces(p *pod.Pod) ([]counters, error) {
	if p.Config.GetLinux().GetSecurityContext().GetNamespaceOptions().GetNetwork() == cri.NamespaceMode_NODE {
		return nil, nil
	}
	ns, err := c.pods.NamespacePath(p)
	if err != nil {
		return nil, err
	}
	defer ns.Close() //nolint:errcheck // read only
	type result struct {
		text string
		err  error
	}
	done := make(chan result, 1)
	go func() { //nolint:gocritic // ends with one read
		text, err := netDev(ns)
		done <- result{text, err}
	}()
	r := <-done
	if r.err != nil {
		return nil, r.err
	}
	return parseNetDev(r.text), nil
}

// netDev runs on a goroutine of its own: if the thread cannot be brought back, it dies locked.
func netDev(ns *os.File) (string, error) {
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		return "", err
	}
	defer home.Close() //nolint:errcheck // read only
	if err := netns.Set(netns.NsHandle(ns.Fd())); err != nil {
		return "", err
	}
	b, err := os.ReadFile("/proc/thread-self/net/dev")
	if rerr := netns.Set(home); rerr != nil {
		return "", errors.Join(err, rerr)
	}
	runtime.UnlockOSThread()
	return string(b), err
}

func parseNetDev(text string) []counters {
	var out []counters
	sc := bufio.NewScanner(strings.NewReader(text))
	for sc.Scan() {
		name, rest, ok := strings.Cut(sc.Text(), ":")
		if !ok {
			continue
		}
		var n [16]uint64
		args := make([]any, len(n))
		for i := range n {
			args[i] = &n[i]
		}
		if _, err := fmt.Sscan(rest, args...); err != nil && !errors.Is(err, io.EOF) {
			continue
		}
		if name = strings.TrimSpace(name); name == "lo" {
			continue
		}
		out = append(out, counters{name: name, rx: direction{n[0], n[1], n[2], n[3]}, tx: direction{n[8], n[9], n[10], n[11]}})
	}
	return out
}
