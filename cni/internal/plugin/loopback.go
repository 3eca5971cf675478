package plugin

import (
	"encoding/json"
	"net/netip"

	"github.com/berth-project/berth/cni/internal/nlwire"
	"github.com/berth-project/berth/cni/internal/podnet"
	"github.com/berth-project/berth/cni/internal/rtnl"
	"github.com/berth-project/berth/cni/internal/spec"
	"golang.org/x/sys/unix"
)

// loopback serves a verb of type loopback: the interface is brought up on ADD and needs nothing on DEL, because
// it lives and dies with its namespace.
func (c *call) loopback() ([]byte, error) {
	switch c.verb {
	case "DEL":
		return nil, nil
	case "GC", "STATUS":
		return nil, c.since("1.1.0")
	case "CHECK":
		if err := c.since("0.4.0"); err != nil {
			return nil, err
		}
	}
	ns, err := podnet.OpenForeign(c.attachment.Netns)
	if err != nil {
		return nil, err
	}
	defer ns.Close() //nolint:errcheck // read only
	err = ns.Do(func() error {
		conn, err := nlwire.Dial(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer conn.Close() //nolint:errcheck // nothing buffered
		if c.verb == "ADD" {
			return conn.Do([]nlwire.Op{rtnl.SetUp(1)})
		}
		ms, err := conn.Query("look up lo", rtnl.GetLinkIndex(1))
		if err != nil {
			return err
		}
		if l, ok := rtnl.ParseLink(ms[0]); !ok || !l.Up {
			return spec.Errorf(spec.CodeMismatch, "interface lo is down")
		}
		return nil
	})
	if err != nil || c.verb == "CHECK" {
		return nil, err
	}
	if prev := c.conf.PrevResult; len(prev) > 0 && string(prev) != "null" {
		return append(json.RawMessage(nil), append(prev, '\n')...), nil
	}
	r := spec.Result{
		Interfaces: []spec.Interface{{Name: "lo", MAC: "00:00:00:00:00:00", Sandbox: c.attachment.Netns}},
		IPs:        []spec.IP{{Address: netip.PrefixFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 8)}},
	}
	return r.Encode(c.conf.CNIVersion)
}
