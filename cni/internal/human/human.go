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
	"github.com/berth-project/berth/cni/internal/nft"
	"github.com/berth-project/berth/cni/internal/nlwire"
	"github.com/berth-project/berth/cni/internal/rtnl"
	"github.com/berth-project/berth/cni/internal/ruleset"
	"github.com/berth-project/berth/cni/internal/state"
	"golang.org/x/sys/unix"
)

// Run serves "list" and "doctor", each with an optional state directory, and returns the exit code: 1 if something
// is wrong, 2 for a wrong command line.
func Run(args []string, stdout, stderr io.Writer) int {
	dir := "/run/berth/cni"
	if len(args) == 2 {
		dir = args[1]
	}
	var err error
	switch {
	case len(args) >= 1 && len(args) <= 2 && args[0] == "list":
		err = list(dir, stdout)
	case len(args) >= 1 && len(args) <= 2 && args[0] == "doctor":
		err = doctor(dir, stdout)
	default:
		_, _ = fmt.Fprintln(stderr, "usage: berth-cni list|doctor [stateDir]")
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
	_, _ = fmt.Fprintln(w, "POD\tNETWORK\tCONTAINER\tIFNAME\tADDRESSES\tLINK\tHOST PORTS\tSTATE")
	for _, r := range records {
		pod, st := "-", "ready"
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
		_, _ = fmt.Fprintf(w, "%s\t%s\t%.12s\t%s\t%s\t%s\t%s\t%s\n", pod, r.Network, r.ContainerID, r.IfName,
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
		name := fmt.Sprintf("%s/%s %.12s %v", r.Namespace, r.PodName, r.ContainerID, r.Addrs())
		_, err := route.Query("look up "+r.Pod.Link, rtnl.GetLink(r.Pod.Link))
		say(!errors.Is(err, unix.ENODEV), "link of "+name, "its network namespace is gone and DEL never came; STATUS collects it")
		for _, e := range ruleset.Elements(r.Pod) {
			if ok, err := rules.Has(ruleset.Table(), e); err != nil || !ok {
				say(false, "rules of "+name, "the element of set "+e.Set+" is missing; STATUS makes the table again")
				break
			}
		}
	}
	if bad > 0 {
		return fmt.Errorf("%d things are wrong", bad)
	}
	return nil
}
