// Command fill makes a node look as if a network had many pods: records, pool and table, but no links. It is for
// benchmarks, which cannot have 60,000 network namespaces.
//
//	fill STATEDIR NETWORK SUBNET COUNT
package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/berth-project/berth/cni/internal/ipam"
	"github.com/berth-project/berth/cni/internal/nft"
	"github.com/berth-project/berth/cni/internal/ruleset"
	"github.com/berth-project/berth/cni/internal/state"
)

func main() {
	if len(os.Args) != 5 {
		fmt.Fprintln(os.Stderr, "usage: fill STATEDIR NETWORK SUBNET COUNT")
		os.Exit(2)
	}
	if err := fill(os.Args[1], os.Args[2], os.Args[3], os.Args[4]); err != nil {
		fmt.Fprintln(os.Stderr, "fill:", err)
		os.Exit(1)
	}
}

func fill(dir, network, cidr, count string) error {
	subnet, err := netip.ParsePrefix(cidr)
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	s, err := state.Open(dir, strings.TrimSpace(string(boot)), time.Second, nil)
	if err != nil {
		return err
	}
	defer s.Close() //nolint:errcheck // ends with the process
	if err := s.Begin(); err != nil {
		return err
	}
	d := ruleset.Desired{NoMasquerade: []netip.Prefix{subnet}}
	var addrs []netip.Addr
	a := subnet.Addr()
	for i := range n {
		a = a.Next()
		id := fmt.Sprintf("filled-%d", i)
		r := &state.Record{
			Network: network, ContainerID: id, IfName: "eth0", Netns: "/run/netns/" + id, MTU: 1500,
			Pod: ruleset.Pod{Link: state.LinkName(network, id, "eth0"), MAC: [6]byte{2, 0, 0, 0, byte(i >> 8), byte(i)}, Addrs: []netip.Addr{a}, Masquerade: true},
		}
		if err := errors.Join(s.Save(r), s.Commit(r)); err != nil {
			return err
		}
		d.Pods, addrs = append(d.Pods, r.Pod), append(addrs, a)
	}
	if _, err := s.SaveNetwork(state.Network{Name: network, Pools: []netip.Prefix{subnet}}); err != nil {
		return err
	}
	p, err := ipam.Open(filepath.Join(dir, "pools"), subnet)
	if err != nil {
		return err
	}
	p.Resume(a)
	if err := errors.Join(p.Reset(addrs, 1), p.Flush(), p.Close()); err != nil {
		return err
	}
	c, err := nft.Dial()
	if err != nil {
		return err
	}
	return errors.Join(c.Commit(ruleset.Compile(d)), c.Close(), s.End())
}
