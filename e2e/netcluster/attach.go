package netcluster

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// attach runs a plugin as a runtime does, for a pod of a namespace.
func (n *Node) attach(plugin, conf, namespace string) (*Pod, error) {
	ns, err := NewNS()
	if err != nil {
		return nil, err
	}
	n.serial++
	id := fmt.Sprintf("pod-%s-%d", n.Name, n.serial)
	call := func(verb string) ([]byte, error) {
		cmd := exec.Command(plugin) //nolint:gosec // the test's own
		cmd.Env = append(os.Environ(), "CNI_COMMAND="+verb, "CNI_CONTAINERID="+id, "CNI_IFNAME=eth0", "CNI_NETNS="+ns.Path(), "CNI_PATH="+filepath.Dir(plugin),
			"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE="+namespace+";K8S_POD_NAME="+id)
		cmd.Stdin = strings.NewReader(conf)
		var out []byte
		err := n.Do(func() (err error) { out, err = cmd.Output(); return err })
		if err != nil {
			err = fmt.Errorf("%s %s on %s: %w: %s", verb, id, n.Name, err, out)
		}
		return out, err
	}
	p := &Pod{NS: ns, Node: n, del: func() error { _, err := call("DEL"); return err }}
	out, err := call("ADD")
	if err != nil {
		return nil, err
	}
	var r struct {
		IPs []struct{ Address string } `json:"ips"`
	}
	if err := json.Unmarshal(out, &r); err != nil || len(r.IPs) == 0 {
		return nil, fmt.Errorf("%s: %w: %s", id, err, out)
	}
	p.IP, _, _ = strings.Cut(r.IPs[0].Address, "/")
	return p, nil
}
