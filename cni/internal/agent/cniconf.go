package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/berth-project/berth/cni/internal/fabric"
	"github.com/berth-project/berth/cni/internal/netdconf"
	"github.com/berth-project/berth/cni/internal/overlay"
	"github.com/berth-project/berth/internal/atomicfile"
	"github.com/berth-project/berth/internal/failpoint"
)

var (
	beforeCNI = failpoint.New("netd.before_cni_conf")
	afterCNI  = failpoint.New("netd.after_cni_conf")
)

// conflist and plugin are the configuration list of CNI 1.1.0 as far as we write it.
type conflist struct {
	CNIVersion string   `json:"cniVersion"`
	Name       string   `json:"name"`
	Plugins    []plugin `json:"plugins"`
}

type plugin struct {
	Type              string          `json:"type"`
	Ranges            []podRange      `json:"ranges"`
	Reserved          []string        `json:"reservedNamespaces,omitempty"`
	IPMasq            bool            `json:"ipMasq"`
	MasqueradeExclude []netip.Prefix  `json:"masqueradeExclude"`
	MTU               int             `json:"mtu"`
	StateDir          string          `json:"stateDir,omitempty"`
	ImportHostLocal   []string        `json:"importHostLocal,omitempty"`
	AgentSocket       string          `json:"agentSocket,omitempty"`
	Capabilities      map[string]bool `json:"capabilities"`
}

type podRange struct {
	Subnet  netip.Prefix `json:"subnet"`
	Exclude []netip.Addr `json:"exclude,omitempty"`
	// Namespaces are those of the pool.
	Namespaces []string `json:"namespaces,omitempty"`
	IPMasq     *bool    `json:"ipMasq,omitempty"`
}

// compileCNI is the runtime's configuration on this node; ok is false while pods could not be served: the node has no
// block, or it is not known how large their packets may be. Nothing that goes to another pool is masqueraded.
func compileCNI(conf netdconf.Config, f *fabric.Fabric, plan *overlay.Plan) (b []byte, ok bool, err error) {
	n, found := f.Node(conf.Node)
	if !found || len(n.PodCIDRs) == 0 || plan.PodMTU == 0 {
		return nil, false, nil
	}
	c := conf.CNI
	p := plugin{
		Type: "berth", IPMasq: true, MasqueradeExclude: f.CIDRs(), MTU: plan.PodMTU, StateDir: c.StateDir, ImportHostLocal: c.ImportHostLocal,
		AgentSocket: conf.CNISocket(),
		Capabilities: map[string]bool{
			"portMappings": true, "bandwidth": true, "ipRanges": true, "ips": true, "mac": true, "dns": true, "cgroupPath": true,
		},
	}
	for _, block := range n.PodCIDRs {
		r := podRange{Subnet: block}
		for _, a := range plan.Taken {
			if block.Contains(a) {
				r.Exclude = append(r.Exclude, a)
			}
		}
		if pool, ok := f.PoolOf(block); ok {
			r.Namespaces = pool.Namespaces
			if pool.NoMasquerade {
				r.IPMasq = new(bool)
			}
		}
		p.Ranges = append(p.Ranges, r)
	}
	p.Reserved = reserved(f, n)
	b, err = json.MarshalIndent(conflist{CNIVersion: "1.1.0", Name: c.Network, Plugins: []plugin{p}}, "", "  ")
	return append(b, '\n'), err == nil, err
}

// reserved are the namespaces of pools of which the node has no block yet, in any of their families: their pods must not
// get others' addresses, nor fewer than they should.
func reserved(f *fabric.Fabric, n fabric.Node) (out []string) {
	for _, pool := range f.Pools {
		for _, c := range pool.CIDRs {
			has := slices.ContainsFunc(n.PodCIDRs, func(b netip.Prefix) bool {
				in, ok := f.PoolOf(b)
				return ok && in.Name == pool.Name && b.Addr().Is6() == c.Addr().Is6()
			})
			if !has {
				out = append(out, pool.Namespaces...)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// writeCNI puts the configuration in place, by rename, once the kernel holds the plan. One that is there stays while
// another cannot be made.
func (a *Agent) writeCNI(f *fabric.Fabric, plan *overlay.Plan) error {
	if a.conf.CNI.Dir == "" {
		return nil
	}
	want, ok, err := compileCNI(a.conf, f, plan)
	if err != nil || !ok {
		return err
	}
	path := filepath.Join(a.conf.CNI.Dir, a.conf.CNI.File)
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, want) { //nolint:gosec // a path of the configuration
		a.wrote(path)
		return nil
	}
	if err := errors.Join(os.MkdirAll(a.conf.CNI.Dir, 0o755), beforeCNI.Hit()); err != nil { //nolint:gosec // the runtime reads it
		return err
	}
	if err := errors.Join(atomicfile.Write(path, want, 0o644), afterCNI.Hit()); err != nil {
		return err
	}
	a.wrote(path)
	a.log.Info("wrote the CNI configuration", "file", path, "mtu", plan.PodMTU)
	return nil
}

func (a *Agent) wrote(path string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.live.cniFile = path
}
