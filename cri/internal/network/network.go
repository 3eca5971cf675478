// Package network connects pods by CNI: it follows the configuration directory, runs ADD, DEL, CHECK, STATUS and
// GC by libcni, and pins network namespaces below /run/netns so that plugins and people can name them.
//
// The configuration is the first file of the directory, by name, as the kubelet's documentation says; a file
// that does not parse is skipped and named in the readiness condition. An attachment is detached by the
// configuration it was made with (libcni's cache), whatever the directory says by then.
package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/berth-project/berth/proto/errs"
)

// Interface is the name of a pod's interface.
const Interface = "eth0"

// statusTTL is how long an answer of STATUS is believed; the kubelet asks every few seconds.
const statusTTL = 5 * time.Second

// Config says where CNI lives on this node.
type Config struct {
	ConfDir  string
	BinDirs  []string
	CacheDir string
	NetnsDir string // pins, usually /run/netns
}

// Network is the node's CNI. Make it with New; Run follows the directory.
type Network struct {
	cfg Config
	log *slog.Logger
	cni *libcni.CNIConfig

	mu       sync.Mutex
	list     *libcni.NetworkConfigList
	loadErr  error
	status   error
	statusAt time.Time
}

// New reads the configuration once. A directory without one is no error: Ready says so.
func New(cfg Config, log *slog.Logger) *Network {
	n := &Network{cfg: cfg, log: log, cni: libcni.NewCNIConfigWithCacheDir(cfg.BinDirs, cfg.CacheDir, newExec(log))}
	n.Reload()
	return n
}

// Reload reads the directory again.
func (n *Network) Reload() {
	list, err := load(n.cfg.ConfDir)
	n.mu.Lock()
	defer n.mu.Unlock()
	was := n.list
	n.list, n.loadErr, n.statusAt = list, err, time.Time{}
	switch {
	case list == nil && was != nil:
		n.log.Warn("CNI configuration is gone", "dir", n.cfg.ConfDir, "error", err)
	case list != nil && (was == nil || string(was.Bytes) != string(list.Bytes)):
		n.log.Info("CNI configuration", "network", list.Name, "cniVersion", list.CNIVersion)
	}
}

func load(dir string) (*libcni.NetworkConfigList, error) {
	files, err := libcni.ConfFiles(dir, []string{".conf", ".conflist", ".json"})
	if err != nil {
		return nil, err
	}
	slices.Sort(files)
	var bad []error
	for _, f := range files {
		var list *libcni.NetworkConfigList
		var err error
		if strings.HasSuffix(f, ".conflist") {
			list, err = libcni.NetworkConfFromFile(f)
		} else {
			list, err = single(f)
		}
		if err == nil && len(list.Plugins) == 0 {
			err = errors.New("lists no plugin")
		}
		if err == nil {
			return list, errors.Join(bad...)
		}
		bad = append(bad, fmt.Errorf("%s: %w", f, err))
	}
	return nil, errors.Join(append(bad, fmt.Errorf("no CNI configuration in %s", dir))...)
}

func single(file string) (*libcni.NetworkConfigList, error) {
	b, err := os.ReadFile(file) //nolint:gosec // the operator's directory
	if err != nil {
		return nil, err
	}
	conf, err := libcni.NetworkPluginConfFromBytes(b)
	if err != nil {
		return nil, err
	}
	if conf.Network.Type == "" {
		return nil, errors.New(`misses "type" (is it a conflist?)`)
	}
	return libcni.ConfListFromConf(conf) //nolint:staticcheck // the format is deprecated, its files are still on nodes
}

// Ready is nil when pods can be connected: there is a configuration and its plugins' STATUS says so.
func (n *Network) Ready(ctx context.Context) error {
	n.mu.Lock()
	list, lerr, status, fresh := n.list, n.loadErr, n.status, time.Since(n.statusAt) < statusTTL
	n.mu.Unlock()
	if list == nil {
		return lerr
	}
	if fresh {
		return status
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	err := n.cni.GetStatusNetworkList(ctx, list)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.status, n.statusAt = err, time.Now()
	return err
}

// Config is the name and raw text of the configuration in use, for the verbose answer of Status.
func (n *Network) Config() (name string, raw json.RawMessage) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.list == nil {
		return "", nil
	}
	return n.list.Name, n.list.Bytes
}

// Attachment is one pod's connection.
type Attachment struct {
	PodID, Name, Namespace, UID string
	Netns                       string // path of the pinned namespace; empty after a reboot
	Network                     string // name of the network it is attached to; empty before Attach
	Ports                       []Port
	IngressRate, EgressRate     int64 // bits per second, 0: no limit
	DNS                         types.DNS
	CgroupPath                  string
	Annotations                 map[string]string
}

// Port is a port mapping in the terms of the portMappings capability (CNI CONVENTIONS.md).
type Port struct {
	HostPort      int32  `json:"hostPort"`
	ContainerPort int32  `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP,omitempty"`
}

// Result is what an attachment got.
type Result struct {
	Network string
	IPs     []string // primary first
	Raw     json.RawMessage
}

func (a Attachment) runtimeConf() *libcni.RuntimeConf {
	rt := &libcni.RuntimeConf{
		ContainerID: a.PodID, NetNS: a.Netns, IfName: Interface, CapabilityArgs: map[string]any{},
		Args: [][2]string{
			{"IgnoreUnknown", "1"},
			{"K8S_POD_NAMESPACE", a.Namespace},
			{"K8S_POD_NAME", a.Name},
			{"K8S_POD_INFRA_CONTAINER_ID", a.PodID},
			{"K8S_POD_UID", a.UID},
		},
	}
	if len(a.Ports) > 0 {
		rt.CapabilityArgs["portMappings"] = a.Ports
	}
	if a.IngressRate > 0 || a.EgressRate > 0 {
		const burst = 1<<31 - 1 // what peers send: the plugins' own field is an int32 on some
		bw := map[string]int64{}
		if a.IngressRate > 0 {
			bw["ingressRate"], bw["ingressBurst"] = a.IngressRate, burst
		}
		if a.EgressRate > 0 {
			bw["egressRate"], bw["egressBurst"] = a.EgressRate, burst
		}
		rt.CapabilityArgs["bandwidth"] = bw
	}
	if len(a.DNS.Nameservers)+len(a.DNS.Search)+len(a.DNS.Options) > 0 {
		rt.CapabilityArgs["dns"] = map[string][]string{"servers": a.DNS.Nameservers, "searches": a.DNS.Search, "options": a.DNS.Options}
	}
	if a.CgroupPath != "" {
		rt.CapabilityArgs["cgroupPath"] = a.CgroupPath
	}
	if len(a.Annotations) > 0 {
		rt.CapabilityArgs["io.kubernetes.cri.pod-annotations"] = a.Annotations
	}
	return rt
}

// Attach runs ADD. On an error it has run DEL, as CNI wants, so that nothing is left; if that failed too, the
// error says both and Detach may be repeated.
func (n *Network) Attach(ctx context.Context, a Attachment) (Result, error) {
	n.mu.Lock()
	list, lerr := n.list, n.loadErr
	n.mu.Unlock()
	if list == nil {
		return Result{}, errs.Unavailable.Errorf("network is not ready: %w", lerr)
	}
	rt := a.runtimeConf()
	res, err := n.cni.AddNetworkList(ctx, list, rt)
	if err == nil {
		var r Result
		if r, err = digest(list.Name, res); err == nil {
			return r, nil
		}
	}
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	if derr := n.cni.DelNetworkList(undo, list, rt); derr != nil { // by the list that failed, whatever the directory holds by now
		err = errors.Join(err, fmt.Errorf("CNI DEL: %w", derr))
	}
	return Result{}, fmt.Errorf("CNI ADD: %w", err)
}

func digest(network string, res types.Result) (Result, error) {
	cur, err := current.NewResultFromResult(res)
	if err != nil {
		return Result{}, err
	}
	r := Result{Network: network}
	for _, ip := range cur.IPs {
		// an address of a host-side interface is not the pod's
		if ip.Interface != nil && *ip.Interface >= 0 && *ip.Interface < len(cur.Interfaces) && cur.Interfaces[*ip.Interface].Sandbox == "" {
			continue
		}
		r.IPs = append(r.IPs, ip.Address.IP.String())
	}
	if len(r.IPs) == 0 {
		return Result{}, errs.Internal.Errorf("network %s gave the pod no address", network)
	}
	r.Raw, err = json.Marshal(cur)
	return r, err
}

// Detach runs DEL with the configuration that Attach used. It succeeds when there is nothing left to do.
func (n *Network) Detach(ctx context.Context, a Attachment) error {
	rt := a.runtimeConf()
	list, err := n.made(a.Network, rt)
	if err != nil || list == nil {
		return err
	}
	if err := n.cni.DelNetworkList(ctx, list, rt); err != nil {
		return fmt.Errorf("CNI DEL: %w", err)
	}
	return nil
}

// made is the configuration an attachment was made with: the cached one, else the present one of that name.
func (n *Network) made(network string, rt *libcni.RuntimeConf) (*libcni.NetworkConfigList, error) {
	raw, _, err := n.cni.GetNetworkListCachedConfig(&libcni.NetworkConfigList{Name: network}, rt)
	if err == nil && len(raw) > 0 {
		if list, err := libcni.NetworkConfFromBytes(raw); err == nil {
			return list, nil
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.list != nil && (network == "" || n.list.Name == network) {
		return n.list, nil
	}
	if network == "" {
		return nil, nil //nolint:nilnil // never attached, nothing to detach
	}
	return nil, errs.FailedPrecondition.Errorf("network %q has no configuration any more: restore it in %s to free the pod's address", network, n.cfg.ConfDir)
}

// Check runs CHECK for an attachment.
func (n *Network) Check(ctx context.Context, a Attachment) error {
	rt := a.runtimeConf()
	list, err := n.made(a.Network, rt)
	if err != nil || list == nil {
		return err
	}
	return n.cni.CheckNetworkList(ctx, list, rt)
}

// GC removes every attachment of the present network that is not among the valid pods' ids. A network whose
// version knows no GC only has its cached attachments detached.
func (n *Network) GC(ctx context.Context, valid []string) error {
	n.mu.Lock()
	list := n.list
	n.mu.Unlock()
	if list == nil {
		return nil
	}
	args := &libcni.GCArgs{ValidAttachments: []types.GCAttachment{}} // a nil list becomes null, which says nothing
	for _, id := range valid {
		args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: id, IfName: Interface})
	}
	return n.cni.GCNetworkList(ctx, list, args)
}

// CacheFile tells where libcni keeps the result of an attachment, for `berth-cri` to explain.
func (n *Network) CacheFile(a Attachment) string {
	return filepath.Join(n.cfg.CacheDir, "results", fmt.Sprintf("%s-%s-%s", a.Network, a.PodID, Interface))
}
