package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/cri/internal/cgroup"
	"github.com/berth-project/berth/cri/internal/network"
	"github.com/berth-project/berth/cri/internal/spec"
	"github.com/berth-project/berth/internal/failpoint"
	"github.com/berth-project/berth/proto/errs"
	v1 "github.com/berth-project/berth/proto/shim/v1"
)

// runLimit bounds the making of a pod, CNI included; it is the kubelet's own deadline for the call.
const runLimit = 4 * time.Minute

var (
	failRunRecorded = failpoint.New("cri.run_pod.after_record")
	failRunSandbox  = failpoint.New("cri.run_pod.after_namespaces")
	failRunPinned   = failpoint.New("cri.run_pod.after_pin")
	failRunNetwork  = failpoint.New("cri.run_pod.after_network")
	failRunScoped   = failpoint.New("cri.run_pod.after_scope")
	failRunReady    = failpoint.New("cri.run_pod.after_ready")
)

// Run makes a pod and returns its id when containers can be started in it. A retry of a call whose caller went
// away joins it; one that comes after it gets the same id. On a failure nothing is left; if the teardown fails
// as well, the pod is listed NOTREADY, to be stopped and removed.
func (m *Manager) Run(ctx context.Context, config *cri.PodSandboxConfig, handler string) (string, error) {
	if err := m.checkPod(config, handler); err != nil {
		return "", err
	}
	k := key(config.GetMetadata())
	return m.join(ctx, k, runLimit, func(ctx context.Context) (string, error) {
		if old := m.named(k); old != nil {
			if old.State().Ready && proto.Equal(old.Config, config) {
				return old.ID, nil
			}
			return "", errs.AlreadyExists.Errorf("%s exists as %s: remove it or raise the attempt", k, old.ID)
		}
		return m.run(ctx, &Pod{ID: newID(), Config: config, Handler: handler, CreatedAt: m.cfg.Now(), Scoped: m.cfg.Scopes != nil, st: PodState{Creating: true}})
	})
}

func (m *Manager) named(k string) *Pod {
	for _, p := range m.Pods() {
		if key(p.Config.GetMetadata()) == k {
			return p
		}
	}
	return nil
}

// run is the story: record the intent, make files and namespaces, pin and connect the network, record the result.
func (m *Manager) run(ctx context.Context, p *Pod) (id string, err error) {
	scope := func() error { return nil }
	defer func() {
		if err != nil {
			_ = scope() // nothing of it may come after the teardown
			err = m.undoRun(ctx, p, err)
		}
	}()
	if err := errors.Join(m.savePod(p), failRunRecorded.Hit()); err != nil {
		return "", err
	}
	scope = m.scopeAhead(ctx, p)
	if err := m.phase(p.ID, "files", func() error { return m.makeFiles(p) }); err != nil {
		return "", err
	}
	if err := m.phase(p.ID, "namespaces", func() error { return errors.Join(m.makeNamespaces(ctx, p, scope), failRunSandbox.Hit()) }); err != nil {
		return "", err
	}
	if !p.hostNetwork() {
		if err := m.phase(p.ID, "network", func() error { return m.connect(ctx, p) }); err != nil {
			return "", err
		}
	}
	if err := errors.Join(scope(), failRunScoped.Hit()); err != nil {
		return "", err
	}
	p.set(func(s *PodState) { s.Creating, s.Ready = false, true })
	if err := errors.Join(m.savePod(p), failRunReady.Hit()); err != nil {
		return "", err
	}
	m.mu.Lock()
	m.pods[p.ID] = p
	m.mu.Unlock()
	m.publish(cri.ContainerEventType_CONTAINER_CREATED_EVENT, p.ID, p.ID)
	m.publish(cri.ContainerEventType_CONTAINER_STARTED_EVENT, p.ID, p.ID)
	m.cfg.Log.Info("pod runs", "pod", p.ID, "name", p.Config.GetMetadata().GetNamespace()+"/"+p.Config.GetMetadata().GetName(), "ips", p.State().IPs)
	return p.ID, nil
}

func (m *Manager) undoRun(ctx context.Context, p *Pod, cause error) error {
	ctx, done := m.detach(ctx, time.Minute)
	defer done()
	err := m.teardown(ctx, p)
	if err == nil {
		err = m.forgetPod(p)
	}
	if err == nil {
		return cause
	}
	p.set(func(s *PodState) { s.Creating, s.Ready, s.Undone = false, false, true })
	m.mu.Lock()
	m.pods[p.ID] = p
	m.mu.Unlock()
	return errors.Join(cause, fmt.Errorf("and its teardown failed, it is listed as %s: %w", p.ID, err), m.savePod(p))
}

func (m *Manager) phase(pod, name string, do func() error) error {
	start := time.Now()
	err := do()
	if m.cfg.Timeline != nil {
		m.cfg.Timeline(pod, Phase{Name: name, Start: start, Took: time.Since(start)})
	}
	return err
}

func (m *Manager) makeNamespaces(ctx context.Context, p *Pod, scope func() error) error {
	sc := p.Config.GetLinux().GetSecurityContext()
	opt := sc.GetNamespaceOptions()
	req := v1.RunPod{ID: p.ID, Sysctls: p.Config.GetLinux().GetSysctls(), Namespaces: p.namespaces()}
	if !p.hostNetwork() {
		req.Hostname = p.Config.GetHostname()
	}
	if spec.UserNamespaced(p.Config) {
		req.UIDMappings, req.GIDMappings = mappings(opt.GetUsernsOptions().GetUids()), mappings(opt.GetUsernsOptions().GetGids())
	}
	var groups *cgroup.Handles
	if opt.GetPid() == cri.NamespaceMode_POD {
		err := scope()
		if err == nil {
			groups, err = m.podGroup(p)
		}
		if err != nil {
			return err
		}
		defer groups.Close()
	}
	if err := m.shims.RunPod(ctx, req, groups); err != nil {
		return err
	}
	own := m.shims.Identities(p.ID)
	p.set(func(s *PodState) { s.Namespaces = own })
	return nil
}

// podGroup makes the group of the pod's own init process.
func (m *Manager) podGroup(p *Pod) (*cgroup.Handles, error) {
	base, err := m.base(p)
	if err != nil {
		return nil, err
	}
	group := base + "/" + p.ID
	if err := m.cfg.Cgroups.Ensure(group); err != nil {
		return nil, err
	}
	return m.cfg.Cgroups.Open(group, group)
}

func (m *Manager) connect(ctx context.Context, p *Pod) error {
	ns, err := m.shims.Namespace(p.ID, "net")
	if err != nil {
		return err
	}
	defer ns.Close() //nolint:errcheck // a namespace
	netns, err := m.network.Pin(p.ID, ns)
	if err != nil {
		return err
	}
	if err := failRunPinned.Hit(); err != nil {
		return err
	}
	res, err := m.network.Attach(ctx, m.attachment(p, netns))
	if err != nil {
		return err
	}
	p.set(func(s *PodState) { s.Network, s.IPs, s.Result = res.Network, res.IPs, res.Raw })
	return failRunNetwork.Hit()
}

func (m *Manager) attachment(p *Pod, netns string) network.Attachment {
	md, st := p.Config.GetMetadata(), p.State()
	a := network.Attachment{
		PodID: p.ID, Name: md.GetName(), Namespace: md.GetNamespace(), UID: md.GetUid(), Netns: netns, Network: st.Network,
		CgroupPath: p.Config.GetLinux().GetCgroupParent(), Annotations: p.Config.GetAnnotations(),
		IngressRate: bandwidth(p.Config.GetAnnotations()["kubernetes.io/ingress-bandwidth"]),
		EgressRate:  bandwidth(p.Config.GetAnnotations()["kubernetes.io/egress-bandwidth"]),
	}
	a.DNS.Nameservers = p.Config.GetDnsConfig().GetServers()
	a.DNS.Search = p.Config.GetDnsConfig().GetSearches()
	a.DNS.Options = p.Config.GetDnsConfig().GetOptions()
	for _, pm := range p.Config.GetPortMappings() {
		if pm.GetHostPort() > 0 {
			a.Ports = append(a.Ports, network.Port{
				HostPort: pm.GetHostPort(), ContainerPort: pm.GetContainerPort(), HostIP: pm.GetHostIp(),
				Protocol: strings.ToLower(pm.GetProtocol().String()),
			})
		}
	}
	return a
}

// bandwidth parses a Kubernetes quantity of bits per second ("10M", "512k", "1Gi"); checkPod has refused the rest.
func bandwidth(s string) int64 {
	n, err := quantity(s)
	if err != nil {
		return 0
	}
	return n
}

func quantity(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	for suffix, factor := range map[string]float64{
		"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12,
	} {
		if num, ok := strings.CutSuffix(s, suffix); ok {
			f, err := strconv.ParseFloat(num, 64)
			if err != nil || !(f >= 0 && f*factor <= 1e15) { // NaN compares with nothing
				return 0, errs.InvalidArgument.Errorf("%q is no bandwidth such as 10M", s)
			}
			return int64(f * factor), nil
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 {
		return 0, errs.InvalidArgument.Errorf("%q is no bandwidth such as 10M", s)
	}
	return n, nil
}

func mappings(ms []*cri.IDMapping) []v1.IDMapping {
	var out []v1.IDMapping
	for _, x := range ms {
		out = append(out, v1.IDMapping{ContainerID: x.GetContainerId(), HostID: x.GetHostId(), Size: x.GetLength()})
	}
	return out
}

var sysctlName = regexp.MustCompile(`^[a-z0-9][a-z0-9_.\-/]*$`)

// checkPod refuses a config that can never work, naming the field.
func (m *Manager) checkPod(c *cri.PodSandboxConfig, handler string) error {
	md := c.GetMetadata()
	if md.GetName() == "" || md.GetNamespace() == "" || md.GetUid() == "" {
		return errs.InvalidArgument.Errorf("config.metadata: name, namespace and uid must be set")
	}
	if _, ok := m.cfg.OCI[handler]; handler != "" && handler != "berth" && !ok {
		return errs.InvalidArgument.Errorf("runtime_handler %q is not configured on this node: add [runtimes.%s] to berth-cri's configuration, or correct the RuntimeClass", handler, handler)
	}
	if _, err := m.parent(c, m.cfg.Scopes != nil); err != nil {
		return fmt.Errorf("linux.cgroup_parent: %w", err)
	}
	if len(c.GetHostname()) > 64 || strings.ContainsAny(c.GetHostname(), "\x00\n") {
		return errs.InvalidArgument.Errorf("hostname %q: at most 64 characters on one line", c.GetHostname())
	}
	for _, k := range []string{"kubernetes.io/ingress-bandwidth", "kubernetes.io/egress-bandwidth"} {
		if _, err := quantity(c.GetAnnotations()[k]); err != nil {
			return fmt.Errorf("annotation %s: %w", k, err)
		}
	}
	return errors.Join(checkUserns(c), checkSysctls(c), spec.RefuseSELinux(c.GetLinux().GetSecurityContext().GetSelinuxOptions(), m.cfg.Features.SELinux))
}

func checkUserns(c *cri.PodSandboxConfig) error {
	o := c.GetLinux().GetSecurityContext().GetNamespaceOptions().GetUsernsOptions()
	if o == nil || o.GetMode() == cri.NamespaceMode_NODE {
		return nil
	}
	if o.GetMode() != cri.NamespaceMode_POD {
		return errs.InvalidArgument.Errorf("userns_options.mode %v: want POD or NODE", o.GetMode())
	}
	for what, ms := range map[string][]*cri.IDMapping{"uids": o.GetUids(), "gids": o.GetGids()} {
		if len(ms) != 1 || ms[0].GetContainerId() != 0 || ms[0].GetLength() == 0 {
			return errs.InvalidArgument.Errorf("userns_options.%s: want exactly one mapping, from container id 0", what)
		}
	}
	if !proto.Equal(o.GetUids()[0], o.GetGids()[0]) {
		return errs.InvalidArgument.Errorf("userns_options: uids and gids must be mapped alike")
	}
	return nil
}

// checkSysctls lets only namespaced keys through, and only those of a namespace the pod has for itself: anything
// else would change the node (CVE-2022-0811 and its kin).
func checkSysctls(c *cri.PodSandboxConfig) error {
	opt := c.GetLinux().GetSecurityContext().GetNamespaceOptions()
	for k, v := range c.GetLinux().GetSysctls() {
		dotted := strings.ReplaceAll(k, "/", ".")
		if !sysctlName.MatchString(k) || strings.Contains(dotted, "..") || strings.ContainsAny(v, "\x00\n") {
			return errs.InvalidArgument.Errorf("linux.sysctls: %q=%q is no sysctl", k, v)
		}
		switch {
		case strings.HasPrefix(dotted, "net."):
			if opt.GetNetwork() == cri.NamespaceMode_NODE {
				return errs.InvalidArgument.Errorf("linux.sysctls: %s needs a network namespace of the pod's own; it is on the host's", k)
			}
		case strings.HasPrefix(dotted, "fs.mqueue."), strings.HasPrefix(dotted, "kernel.shm"), strings.HasPrefix(dotted, "kernel.msg"), dotted == "kernel.sem":
			if opt.GetIpc() == cri.NamespaceMode_NODE {
				return errs.InvalidArgument.Errorf("linux.sysctls: %s needs an IPC namespace of the pod's own; it is on the host's", k)
			}
		default:
			return errs.InvalidArgument.Errorf("linux.sysctls: %s belongs to no namespace: it would change the whole node", k)
		}
	}
	return nil
}

// NamespacePath is a pod's network namespace while it has one, for dialling into it. It is the caller's to close.
func (m *Manager) NamespacePath(p *Pod) (*os.File, error) {
	if p.hostNetwork() {
		return os.Open("/proc/thread-self/ns/net") // every thread but those that are locked elsewhere is in the host's
	}
	if !p.State().Ready {
		return nil, errs.FailedPrecondition.Errorf("pod %s is not ready", p.ID)
	}
	return m.shims.Namespace(p.ID, "net")
}

// validAttachments are the ids of pods that may hold a network attachment.
func (m *Manager) validAttachments() []string {
	var ids []string
	for _, p := range m.Pods() {
		if p.State().Ready {
			ids = append(ids, p.ID)
		}
	}
	return slices.Clip(ids)
}
