package pod

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Pod is a sandbox: namespaces, a network attachment and a few files, which its containers share. There is no
// process in it, unless its containers share a pid namespace.
//
//	            RunPodSandbox            StopPodSandbox, reboot,
//	(creating) ──────────────▶ READY ─── namespaces lost ──────▶ NOTREADY ── RemovePodSandbox ──▶ gone
//	    │ failure: teardown                                          ▲
//	    └──────────────── teardown failed too ───────────────────────┘
//
// A pod that is being created is recorded but not listed: the kubelet would count it.
type Pod struct {
	ID        string
	Config    *cri.PodSandboxConfig // never changed
	Handler   string                // RuntimeClass handler, "" for the built-in one
	CreatedAt time.Time
	Scoped    bool // its groups are in a unit of systemd's: the driver when it was made

	op sync.Mutex // one life-cycle operation at a time; taken before a container's op, held across I/O

	mu sync.Mutex
	st PodState
}

// PodState is what changes in a pod's life.
type PodState struct {
	Creating bool            `json:"creating,omitempty"`
	Ready    bool            `json:"ready,omitempty"`
	Undone   bool            `json:"undone,omitempty"`  // its making failed, and its teardown: it may hold an address
	Network  string          `json:"network,omitempty"` // CNI network it is attached to
	IPs      []string        `json:"ips,omitempty"`     // primary first
	Result   json.RawMessage `json:"result,omitempty"`  // CNI result
	Resized  []byte          `json:"resized,omitempty"` // UpdatePodSandboxResources, as CRI protobuf

	Namespaces map[string]uint64 `json:"namespaces,omitempty"` // inodes of its own, by kind
}

// State is a copy of the pod's present state.
func (p *Pod) State() PodState {
	p.mu.Lock()
	defer p.mu.Unlock()
	st := p.st
	st.IPs = slices.Clone(st.IPs)
	return st
}

func (p *Pod) set(change func(*PodState)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(&p.st)
}

// key names a pod the way the kubelet does; two live pods never share one.
func key(md *cri.PodSandboxMetadata) string {
	return fmt.Sprintf("pod %s/%s (uid %s, attempt %d)", md.GetNamespace(), md.GetName(), md.GetUid(), md.GetAttempt())
}

// namespaces are the kinds that are the pod's own, but for a user namespace.
func (p *Pod) namespaces() (kinds []string) {
	opt := p.Config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	if !p.hostNetwork() {
		kinds = append(kinds, "net", "uts")
	}
	if opt.GetIpc() != cri.NamespaceMode_NODE {
		kinds = append(kinds, "ipc")
	}
	if opt.GetPid() == cri.NamespaceMode_POD {
		kinds = append(kinds, "pid")
	}
	return kinds
}

func (p *Pod) hostNetwork() bool {
	return p.Config.GetLinux().GetSecurityContext().GetNamespaceOptions().GetNetwork() == cri.NamespaceMode_NODE
}

const podKind = "pod"

type podRecord struct {
	Version   int       `json:"version"`
	ID        string    `json:"id"`
	BootID    string    `json:"bootID"`
	Handler   string    `json:"handler,omitempty"`
	CreatedAt time.Time `json:"createdAt"`
	Scoped    bool      `json:"scoped,omitempty"`
	Config    []byte    `json:"config"` // CRI PodSandboxConfig, protobuf
	State     PodState  `json:"state"`
}

// recordVersion is the format of pod and container records.
const recordVersion = 1

func (m *Manager) savePod(p *Pod) error {
	config, err := proto.Marshal(p.Config)
	if err != nil {
		return err
	}
	b, err := json.Marshal(podRecord{
		Version: recordVersion, ID: p.ID, BootID: m.cfg.Features.BootID, Handler: p.Handler,
		CreatedAt: p.CreatedAt, Scoped: p.Scoped, Config: config, State: p.State(),
	})
	if err != nil {
		return err
	}
	return m.records.Put(podKind, p.ID, b)
}

func decodePod(b []byte) (*Pod, string, error) {
	var r podRecord
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, "", err
	}
	if r.Version > recordVersion {
		return nil, "", fmt.Errorf("%w: version %d, this daemon knows %d", errNewer, r.Version, recordVersion)
	}
	p := &Pod{ID: r.ID, Handler: r.Handler, CreatedAt: r.CreatedAt, Scoped: r.Scoped, Config: &cri.PodSandboxConfig{}, st: r.State}
	return p, r.BootID, proto.Unmarshal(r.Config, p.Config)
}

// dir is where a pod's files are, gone after a reboot.
func (m *Manager) podDir(id string) string { return filepath.Join(m.cfg.State, "pods", id) }
