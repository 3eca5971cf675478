package plugin

import (
	"errors"

	"github.com/berth-project/berth/cni/internal/dropin"
	"github.com/berth-project/berth/cni/internal/netconf"
	"github.com/berth-project/berth/cni/internal/podnet"
	"github.com/berth-project/berth/cni/internal/spec"
)

// berth serves a verb of type berth.
func (c *call) berth() (out []byte, err error) {
	var req *netconf.Request
	switch c.verb {
	case "ADD":
		if c.attachment.IfName == "lo" {
			return nil, spec.Errorf(spec.CodeEnvironment, "CNI_IFNAME \"lo\" is the loopback interface")
		}
		if len(c.conf.PrevResult) > 0 && string(c.conf.PrevResult) != "null" {
			return nil, spec.Errorf(spec.CodeConfig, "type berth makes the interface and must be the first plugin of its chain, but got a prevResult")
		}
		if req, err = netconf.ParseRequest(c.conf, c.args); err != nil {
			return nil, err
		}
	case "CHECK":
		err = c.since("0.4.0")
	case "GC", "STATUS":
		err = c.since("1.1.0")
	}
	if err != nil {
		return nil, err
	}
	if c.conf.Backend == "" {
		ipt, err := dropin.NodeBackend()
		if err != nil {
			return nil, err
		}
		if ipt {
			c.conf.Backend = netconf.IPTables
		}
	}
	n, err := podnet.Open(c.conf, podnet.Options{Log: c.Stderr, Turn: c.Turn})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	switch c.verb {
	case "ADD":
		r, err := n.Add(c.attachment, req)
		if err != nil {
			return nil, err
		}
		return r.Encode(c.conf.CNIVersion)
	case "DEL":
		return nil, n.Del(c.attachment)
	case "CHECK":
		return nil, n.Check(c.attachment)
	case "STATUS":
		return nil, n.Status()
	}
	valid, ok := c.conf.Valid()
	if !ok {
		return nil, spec.Errorf(spec.CodeConfig, "GC without the key \"cni.dev/valid-attachments\" would delete everything")
	}
	return nil, n.GC(valid)
}
