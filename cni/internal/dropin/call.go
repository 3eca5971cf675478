// Package dropin is the plugins of the containernetworking project under their own names: bridge, ptp, host-local,
// static, portmap, bandwidth, firewall and tuning, with the same configuration and the same results in every version of
// the specification. Each type is a story: what an attachment of it has. How that is recorded, undone, repaired and
// collected is package podnet's, and the same for all. IPAM of the two built-in kinds runs in this process.
//
// They differ from upstream's in what the specification asks and upstream lacks: GC and STATUS for every type, DEL
// from a record (so that it needs neither namespace nor previous result), the namespace checked before anything is
// touched, and errors with codes.
package dropin

import (
	"errors"
	"io"
	"maps"
	"net/netip"
	"slices"

	"github.com/berth-project/berth/cni/internal/netconf"
	"github.com/berth-project/berth/cni/internal/netns"
	"github.com/berth-project/berth/cni/internal/podnet"
	"github.com/berth-project/berth/cni/internal/spec"
	"github.com/berth-project/berth/cni/internal/state"
)

// Call is one verb with what it was given.
type Call struct {
	Verb, Type string
	podnet.Attachment
	// Args is CNI_ARGS, Path CNI_PATH.
	Args, Path string
	// Env is the environment without CNI_COMMAND, for an IPAM plugin that is not built in.
	Env   []string
	Stdin []byte
	Log   io.Writer

	conf conf
	net  *podnet.Network
}

// plugin is what a type does for each verb. Nothing but add returns anything.
type plugin struct {
	// since is the first version that the type has; empty for all.
	since string
	// parse reads and checks the configuration before anything is touched.
	parse func(*Call) error
	add   func(*Call) (*spec.Result, error)
	del   func(*Call) error
	check func(*Call) error
	// status and gc are what the type has beyond the records, which are seen to for all but a type that keeps nothing.
	status, gc func(*Call) error
	stateless  bool
}

// plugins are the types. It is built for each call, because it is needed once.
func plugins() map[string]func() plugin {
	return map[string]func() plugin{
		"bridge": bridgePlugin, "ptp": ptpPlugin, "host-local": hostLocalPlugin, "static": staticPlugin,
		"portmap": portmapPlugin, "bandwidth": bandwidthPlugin, "firewall": firewallPlugin, "tuning": tuningPlugin,
	}
}

// Knows says whether the name is one of the types.
func Knows(name string) bool { return plugins()[name] != nil }

// Types lists the types.
func Types() []string { return slices.Sorted(maps.Keys(plugins())) }

// Versions lists the versions of the specification that a type has.
func Versions(typ string) []string {
	all := spec.Versions()
	if p := plugins()[typ]; p != nil && p().since != "" {
		return all[slices.Index(all, p().since):]
	}
	return all
}

// Version is the configuration's, once it was read.
func (c *Call) Version() string { return c.conf.CNIVersion }

// Serve carries out the verb and returns what is to be printed.
func (c *Call) Serve() (out []byte, err error) {
	p := plugins()[c.Type]()
	if err := p.parse(c); err != nil {
		return nil, err
	}
	since := map[string]string{"CHECK": "0.4.0", "STATUS": "1.1.0", "GC": "1.1.0"}[c.Verb]
	for _, v := range []string{since, p.since} {
		if v != "" && !spec.AtLeast(c.conf.CNIVersion, v) {
			return nil, spec.Errorf(spec.CodeVersion, "type %s, %s needs cniVersion %s or later, the configuration says %s", c.Type, c.Verb, v, c.conf.CNIVersion)
		}
	}
	switch c.Verb {
	case "ADD":
		r, err := p.add(c)
		if err != nil || r == nil { // an add that hands on prevResult as it is
			if err == nil {
				r, err = c.chained()
			}
			if err != nil {
				return nil, err
			}
			return c.pass(r)
		}
		return r.Encode(c.conf.CNIVersion)
	case "DEL":
		return nil, p.del(c)
	case "CHECK":
		return nil, p.check(c)
	case "STATUS":
		if p.stateless {
			return nil, nil
		}
		return nil, errors.Join(c.with(func() error { return c.net.Collect() }), c.optional(p.status))
	}
	if c.conf.Valid == nil {
		return nil, spec.Errorf(spec.CodeConfig, "GC without the key \"cni.dev/valid-attachments\" would delete everything")
	}
	if p.stateless {
		return nil, nil
	}
	return nil, errors.Join(c.with(func() error { return c.net.GCType(c.Type, *c.conf.Valid) }), c.optional(p.gc))
}

func (c *Call) optional(fn func(*Call) error) error {
	if fn == nil {
		return nil
	}
	return fn(c)
}

// with runs fn with the state locked and repaired.
func (c *Call) with(fn func() error) (err error) {
	if c.net != nil {
		return fn()
	}
	c.net, err = podnet.Open(&netconf.Config{Name: c.conf.Name, StateDir: c.conf.StateDir}, podnet.Options{Log: c.Log})
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, c.net.Close())
		c.net = nil
	}()
	return fn()
}

// record begins the record of an attachment in a namespace.
func (c *Call) record(ns *netns.NS) *state.Record {
	r := &state.Record{Type: c.Type, Network: c.conf.Name, ContainerID: c.ContainerID, IfName: c.IfName, Netns: c.Netns}
	if ns != nil {
		r.NetnsIno = ns.Ino
	}
	args, err := netconf.ParseArgs(c.Args)
	if err == nil {
		r.Namespace, r.PodName, r.UID = args["K8S_POD_NAMESPACE"], args["K8S_POD_NAME"], args["K8S_POD_UID"]
	}
	return r
}

// removeRecord takes off what the attachment's record says, and says whether there was one.
func (c *Call) removeRecord() (found bool, err error) {
	rec, err := c.net.Find(c.Type, c.Attachment)
	if err != nil || rec == nil {
		return false, err
	}
	return true, c.net.Remove(rec)
}

// del is DEL for a type that has nothing but its record.
func del(c *Call) error {
	return c.with(func() error {
		_, err := c.removeRecord()
		return err
	})
}

// refuseSecond fails if the attachment is there, and takes off one whose namespace is gone.
func (c *Call) refuseSecond() error {
	rec, err := c.net.Find(c.Type, c.Attachment)
	if err != nil || rec == nil {
		return err
	}
	if rec.Pod.Link != "" {
		if _, found, err := c.net.Link(rec.Pod.Link); err != nil || found {
			return errors.Join(err, spec.Errorf(spec.CodeExists, "container %s has interface %s of network %s already (link %s)",
				c.ContainerID, c.IfName, c.conf.Name, rec.Pod.Link))
		}
	}
	return c.net.Remove(rec)
}

// sandboxAddrs are the addresses of a result on the interface in the container, the first of each family.
func (c *Call) sandboxAddrs(r *spec.Result) []netip.Prefix {
	var out []netip.Prefix
	for _, ip := range r.IPs {
		i := ip.Interface
		if i >= 0 && i < len(r.Interfaces) && (r.Interfaces[i].Name != c.IfName || r.Interfaces[i].Sandbox == "") {
			continue
		}
		have := false
		for _, o := range out {
			have = have || o.Addr().Is4() == ip.Address.Addr().Is4()
		}
		if !have {
			out = append(out, ip.Address)
		}
	}
	return out
}
