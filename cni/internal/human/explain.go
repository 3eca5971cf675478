package human

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"github.com/berth-project/berth/cni/internal/iptables"
	"github.com/berth-project/berth/cni/internal/nft"
	"github.com/berth-project/berth/cni/internal/nlwire"
	"github.com/berth-project/berth/cni/internal/rtnl"
	"github.com/berth-project/berth/cni/internal/ruleset"
	"github.com/berth-project/berth/cni/internal/state"
	"golang.org/x/sys/unix"
)

// explain says all that there is of the attachments that what names: a pod (namespace/name or name), the beginning of a
// container's id, an address, or a link.
func explain(what, dir string, out io.Writer) error {
	records, err := state.Peek(dir)
	if err != nil {
		return err
	}
	rules, err := nft.Dial()
	if err != nil {
		return err
	}
	defer rules.Close() //nolint:errcheck // read only
	route, err := nlwire.Dial(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer route.Close() //nolint:errcheck // read only
	found := false
	for _, r := range records {
		if !names(r, what) {
			continue
		}
		found = true
		e := explainer{out: out, rules: rules, route: route}
		e.record(r)
	}
	if !found {
		return fmt.Errorf("nothing in %s is %q: `berth-cni list` shows what there is", dir, what)
	}
	return nil
}

func names(r *state.Record, what string) bool {
	if a, err := netip.ParseAddr(what); err == nil {
		for _, x := range r.Addrs() {
			if x == a {
				return true
			}
		}
		for _, l := range r.Leases {
			if l.Addr == a {
				return true
			}
		}
	}
	for _, l := range append([]string{r.Pod.Link, r.Witness}, r.Links...) {
		if l != "" && l == what {
			return true
		}
	}
	return r.PodName != "" && (what == r.PodName || what == r.Namespace+"/"+r.PodName) ||
		len(what) >= 4 && strings.HasPrefix(r.ContainerID, what)
}

// explainer writes one attachment, a line for each thing with whether it is there.
type explainer struct {
	out   io.Writer
	rules *nft.Conn
	route *nlwire.Conn
}

func (e *explainer) line(ok bool, what, format string, args ...any) {
	mark := "ok     "
	if !ok {
		mark = "MISSING"
	}
	_, _ = fmt.Fprintf(e.out, "  %s %-12s %s\n", mark, what, fmt.Sprintf(format, args...))
}

func (e *explainer) record(r *state.Record) {
	typ := r.Type
	if typ == "" {
		typ = "berth"
	}
	_, _ = fmt.Fprintf(e.out, "%s/%s: container %s, interface %s, network %s, type %s\n", r.Namespace, r.PodName, r.ContainerID, r.IfName, r.Network, typ)
	if r.Pending {
		_, _ = fmt.Fprintln(e.out, "  pending: ADD did not finish; the next verb takes it off")
	}
	_, _ = fmt.Fprintf(e.out, "  attached %s in %s\n", time.Unix(r.Created, 0).UTC().Format(time.RFC3339), r.Netns)
	links := r.Links
	if r.Type == "" {
		links = append(links[:len(links):len(links)], r.Pod.Link)
	}
	for _, l := range links {
		e.link(l)
	}
	for _, a := range r.Addrs() {
		e.way(a)
	}
	for _, l := range r.Leases {
		_, _ = fmt.Fprintf(e.out, "  lease   %s in %s\n", l.Addr, l.Dir)
	}
	for _, p := range r.Pod.Ports {
		host := "every address"
		if p.HostIP.IsValid() {
			host = p.HostIP.String()
		}
		_, _ = fmt.Fprintf(e.out, "  port    %d of %s leads to %d (protocol %d)\n", p.Host, host, p.Target, p.Proto)
	}
	if b := r.Bandwidth; b != nil {
		_, _ = fmt.Fprintf(e.out, "  limits  %d bit/s in, %d bit/s out\n", b.IngressRate, b.EgressRate)
	}
	e.netfilter(r)
}

func (e *explainer) link(name string) {
	ms, err := e.route.Query("look up "+name, rtnl.GetLink(name))
	if err != nil {
		e.line(false, "link", "%s: %v", name, err)
		return
	}
	l, _ := rtnl.ParseLink(ms[0])
	e.line(l.Up, "link", "%s (%s, index %d, MAC %s, MTU %d, %q)", name, l.Kind, l.Index, l.MAC, l.MTU, l.Alias)
}

// way is where the kernel sends packets for an address.
func (e *explainer) way(a netip.Addr) {
	ms, err := e.route.Query("find the way", rtnl.LookupRoute(a))
	if err != nil || len(ms) == 0 {
		e.line(false, "route", "%s: %v", a, err)
		return
	}
	r, _ := rtnl.ParseRoute(ms[0])
	name := fmt.Sprint("link ", r.Index)
	if ms, err = e.route.Query("look up the way's link", rtnl.GetLinkIndex(r.Index)); err == nil {
		if l, ok := rtnl.ParseLink(ms[0]); ok {
			name = l.Name
		}
	}
	e.line(true, "route", "%s by %s", a, name)
}

func (e *explainer) netfilter(r *state.Record) {
	if r.IPTables != nil {
		missing, err := iptables.Missing(r.IPTables)
		e.line(err == nil && len(missing) == 0, "iptables", "%v %v", missing, errors.Join(err))
		return
	}
	sets := map[string]int{}
	for _, el := range ruleset.Elements(r.Pod) {
		ok, err := e.rules.Has(ruleset.Table(), el)
		if err != nil || !ok {
			e.line(false, "nftables", "an element of set %s", el.Set)
			continue
		}
		sets[el.Set]++
	}
	if len(sets) > 0 {
		e.line(true, "nftables", "elements in table inet %s: %v", ruleset.Table().Name, sets)
	}
}
