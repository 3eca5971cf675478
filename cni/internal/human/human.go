// Package human is berth-cni for people at a terminal: what is attached, and what is wrong. It reads the state
// without its lock and changes nothing, so it is safe on a node in trouble.
package human

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/berth-project/berth/cni/internal/forwarding"
	"github.com/berth-project/berth/cni/internal/iptables"
	"github.com/berth-project/berth/cni/internal/nft"
	"github.com/berth-project/berth/cni/internal/nlwire"
	"github.com/berth-project/berth/cni/internal/rtnl"
	"github.com/berth-project/berth/cni/internal/ruleset"
	"github.com/berth-project/berth/cni/internal/state"
	"golang.org/x/sys/unix"
)

// Run serves "list", "doctor" and "explain", each with an optional state directory, and returns the exit code: 1 if
// something is wrong, 2 for a wrong command line.
func Run(args []string, stdout, stderr io.Writer) int {
	verb, what := args[0], ""
	args = args[1:]
	if verb == "explain" && len(args) > 0 {
		what, args = args[0], args[1:]
	}
	dir := "/run/berth/cni"
	if len(args) == 1 {
		dir = args[0]
	}
	var err error
	switch {
	case verb == "list" && len(args) <= 1:
		err = list(dir, stdout)
	case verb == "doctor" && len(args) <= 1:
		err = doctor(dir, stdout)
	case verb == "explain" && what != "" && len(args) <= 1:
		err = explain(what, dir, stdout)
	default:
		_, _ = fmt.Fprintln(stderr, "usage: berth-cni list [stateDir]\n       berth-cni explain POD|CONTAINER|ADDRESS|LINK [stateDir]\n       berth-cni doctor [stateDir]")
		return 2
	}
	if err != nil {
		_, _ = fmt.Fprintln(stderr, "berth-cni:", err)
		return 1
	}
	return 0
}

func list(dir string, out io.Writer) error {
	records, err := state.Peek(dir)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "POD\tTYPE\tNETWORK\tCONTAINER\tIFNAME\tADDRESSES\tLINK\tHOST PORTS\tSTATE")
	for _, r := range records {
		pod, typ, st := "-", r.Type, "ready"
		if typ == "" {
			typ = "berth"
		}
		if r.PodName != "" {
			pod = r.Namespace + "/" + r.PodName
		}
		if r.Pending {
			st = "pending"
		}
		var addrs, ports []string
		for _, a := range r.Addrs() {
			addrs = append(addrs, a.String())
		}
		for _, p := range r.Pod.Ports {
			ports = append(ports, fmt.Sprintf("%d→%d", p.Host, p.Target))
		}
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%.12s\t%s\t%s\t%s\t%s\t%s\n", pod, typ, r.Network, r.ContainerID, r.IfName,
			strings.Join(addrs, ","), r.Pod.Link, strings.Join(ports, ","), st)
	}
	return w.Flush()
}

// doctor prints one line for each thing it looked at and fails if one of them is wrong.
func doctor(dir string, out io.Writer) error {
	bad := 0
	say := func(ok bool, what, cure string) {
		if ok {
			_, _ = fmt.Fprintf(out, "ok    %s\n", what)
			return
		}
		bad++
		_, _ = fmt.Fprintf(out, "WRONG %s: %s\n", what, cure)
	}
	for _, key := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		v, err := os.ReadFile("/proc/sys/net/" + key)
		say(err == nil && strings.TrimSpace(string(v)) != "0", "net/"+key, "off; the next ADD of that family turns it on")
	}
	records, err := state.Peek(dir)
	say(err == nil, "state in "+dir, fmt.Sprint(err))
	rules, err := nft.Dial()
	if err != nil {
		return err
	}
	defer rules.Close() //nolint:errcheck // read only
	has, err := rules.Has(ruleset.Table(), ruleset.Probe())
	say(err == nil && has, "table inet berth-node", fmt.Sprintf("missing or of another version (%v); STATUS or the next ADD makes it again", err))
	obstacles, err := forwarding.Obstacles(rules)
	say(err == nil, "other tables", fmt.Sprint(err))
	for _, o := range obstacles {
		_, _ = fmt.Fprintf(out, "LOOK  %s: packets of pods are lost if its rules do not accept them; type firewall with \"backend\": \"iptables\" adds such rules\n", o)
	}
	route, err := nlwire.Dial(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer route.Close() //nolint:errcheck // read only
	for _, r := range records {
		examine(r, route, rules, say)
	}
	if bad > 0 {
		return fmt.Errorf("%d things are wrong", bad)
	}
	return nil
}

// examine looks at one attachment's link and rules.
func examine(r *state.Record, route *nlwire.Conn, rules *nft.Conn, say func(ok bool, what, cure string)) {
	name := fmt.Sprintf("%s/%s %.12s %v", r.Namespace, r.PodName, r.ContainerID, r.Addrs())
	var err error
	link := r.Pod.Link
	if link == "" {
		link = r.Witness
	}
	if link != "" {
		_, err = route.Query("look up "+link, rtnl.GetLink(link))
	}
	say(!errors.Is(err, unix.ENODEV), "link of "+name, "its network namespace is gone and DEL never came; STATUS collects it")
	if r.IPTables != nil {
		missing, err := iptables.Missing(r.IPTables)
		say(err == nil && len(missing) == 0, "rules of "+name, fmt.Sprintf("%v %v: delete the attachment and make it again", missing, err))
		return
	}
	for _, e := range ruleset.Elements(r.Pod) {
		if ok, err := rules.Has(ruleset.Table(), e); err != nil || !ok {
			say(false, "rules of "+name, "the element of set "+e.Set+" is missing; STATUS makes the table again")
			break
		}
	}
}
