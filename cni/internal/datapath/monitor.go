package datapath

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/berth-project/berth/cni/internal/nlwire"
	"github.com/berth-project/berth/cni/internal/rtnl"
	"golang.org/x/sys/unix"
)

// Event is what the kernel told, as much of it as decides what is done next.
type Event struct {
	// Links: a link or an address has changed, so that the plan may be another one.
	Links bool
	// Objects: routes, neighbours or forwarding entries of ours may have been changed by somebody.
	Objects bool
	// Table: our nftables table was changed by somebody else.
	Table bool
	// Lost: the kernel had more to tell than the socket could hold (ENOBUFS): look at everything.
	Lost bool
}

// poll is how often a monitor looks whether it shall end.
const poll = 200 * time.Millisecond

// Watch calls tell for each burst of notifications until ctx ends. own are the sockets whose doings are our own. It
// must be started in the namespace that it watches; it opens its sockets before it calls ready.
func (k *Kernel) Watch(ctx context.Context, ready func(), tell func(Event)) error {
	route, err := nlwire.Dial(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer route.Close() //nolint:errcheck // nothing is written
	table, err := nlwire.Dial(unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer table.Close() //nolint:errcheck // nothing is written
	for _, g := range []int{unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE} {
		if err := route.Join(g); err != nil {
			return err
		}
	}
	if err := table.Join(unix.NFNLGRP_NFTABLES); err != nil {
		return err
	}
	ready()
	for ctx.Err() == nil {
		fds := []unix.PollFd{{Fd: int32(route.FD()), Events: unix.POLLIN}, {Fd: int32(table.FD()), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, int(poll.Milliseconds())); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for the kernel: %w", err)
		}
		var e Event
		if err := errors.Join(drain(route, func(m nlwire.Message) { e.route(m, k.port(), k.isOurs) }, &e),
			drain(table, func(m nlwire.Message) { e.table(m, k.nftPort()) }, &e)); err != nil {
			return err
		}
		if e != (Event{}) {
			tell(e)
		}
	}
	return nil
}

// drain reads what is there.
func drain(c *nlwire.Conn, see func(nlwire.Message), e *Event) error {
	for {
		ms, err := c.Recv(false)
		if errors.Is(err, unix.ENOBUFS) {
			e.Lost = true
			continue
		}
		if err != nil {
			return err
		}
		if len(ms) == 0 {
			return nil
		}
		for _, m := range ms {
			see(m)
		}
	}
}

// route looks at one message of rtnetlink. The kernel removes routes by itself when a link goes, and then tells of the
// link alone.
func (e *Event) route(m nlwire.Message, own uint32, ours func(index int32) bool) {
	switch m.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK, unix.RTM_NEWADDR, unix.RTM_DELADDR:
		e.Links = e.Links || m.Port != own
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		if p, ok := rtnl.ParsePaths(m); ok && p.Protocol == Protocol && m.Port != own {
			e.Objects = true
		}
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		if len(m.Body) >= unix.SizeofNdMsg && m.Port != own && ours(int32(nlwire.U32(m.Body[4:]))) {
			e.Objects = true
		}
	}
}

// table looks at one message of nf_tables.
func (e *Event) table(m nlwire.Message, own uint32) {
	if m.Port == own || m.Type>>8 != unix.NFNL_SUBSYS_NFTABLES || len(m.Body) < 4 || m.Type&0xff == unix.NFT_MSG_NEWGEN {
		return
	}
	nlwire.Attrs(m.Body[4:], func(typ uint16, v []byte) {
		// The table's name is attribute 1 of every object.
		if typ == unix.NFTA_TABLE_NAME && nlwire.Str(v) == TableName {
			e.Table = true
		}
	})
}

// isOurs says whether a link is one of our devices, as of the last [Kernel.Apply].
func (k *Kernel) isOurs(index int32) bool {
	all := k.ours.Load()
	return all != nil && (*all)[index]
}

// remember notes which links are ours.
func (k *Kernel) remember(s *state) {
	all := map[int32]bool{}
	k.tunnels = map[string]int32{}
	for name, t := range s.tunnels {
		if t.alias == Alias {
			all[t.index] = true
			k.tunnels[name] = t.index
		}
	}
	k.ours.Store(&all)
}

// Tunnels are the indexes of our devices by name, as the last [Kernel.Apply] left them.
func (k *Kernel) Tunnels() map[string]int32 { return k.tunnels }

func (k *Kernel) port() uint32 { return k.route.Port() }

func (k *Kernel) nftPort() uint32 { return k.nft.Port() }
