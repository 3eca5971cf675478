package nft

import (
	"errors"
	"fmt"

	"github.com/berth-project/berth/cni/internal/nlwire"
	"golang.org/x/sys/unix"
)

// Conn sends transactions to nf_tables.
type Conn struct{ c *nlwire.Conn }

// Dial opens a socket in the calling thread's network namespace.
func Dial() (*Conn, error) {
	c, err := nlwire.Dial(unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	return &Conn{c}, nil
}

// Close closes the socket.
func (c *Conn) Close() error { return c.c.Close() }

// FD is the socket, for a process that shall outlive us holding it (see package linkdel).
func (c *Conn) FD() int { return c.c.FD() }

// Port is the socket's number, which notifications of what it caused carry.
func (c *Conn) Port() uint32 { return c.c.Port() }

func batchMark(typ uint16) []byte {
	// res_id is the subsystem, in network order (struct nfgenmsg).
	return nlwire.New(typ, requestFlags, []byte{0, 0, 0, unix.NFNL_SUBSYS_NFTABLES}).Done()
}

// Commit carries out ops as one transaction: all of them or none. The error names the first that was refused.
func (c *Conn) Commit(ops []nlwire.Op) error {
	if len(ops) == 0 {
		return nil
	}
	msgs := make([][]byte, 0, len(ops)+2)
	msgs = append(msgs, batchMark(unix.NFNL_MSG_BATCH_BEGIN))
	for i := range ops {
		msgs = append(msgs, ops[i].Msg)
	}
	last := msgs[len(msgs)-1]
	nlwire.AddFlags(last, unix.NLM_F_ACK)
	msgs = append(msgs, batchMark(unix.NFNL_MSG_BATCH_END))
	first, err := c.c.Send(msgs...)
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	return c.outcome(ops, first)
}

// outcome reads every answer to the transaction that began with sequence number first. The kernel queues them
// before send returns, so an empty queue is the end; answers to an earlier transaction are passed over.
func (c *Conn) outcome(ops []nlwire.Op, first uint32) error {
	var failed error
	acked := false
	for {
		answers, err := c.c.Recv(false)
		if err != nil {
			return fmt.Errorf("nftables: %w", err)
		}
		if len(answers) == 0 {
			break
		}
		for _, m := range answers {
			i := int(int32(m.Seq-first)) - 1
			if m.Type != unix.NLMSG_ERROR || i < -1 || i > len(ops) {
				continue
			}
			errno := m.Errno()
			switch {
			case errno == 0:
				acked = true
			case failed != nil:
			case i >= 0 && i < len(ops):
				failed = fmt.Errorf("nftables: %s: %w", ops[i].What, errno)
			default:
				failed = fmt.Errorf("nftables: transaction: %w", errno)
			}
		}
	}
	if failed == nil && !acked {
		return errors.New("nftables: the kernel did not answer the transaction")
	}
	return failed
}

// Has says whether the table's set holds the element. A missing set or table is "no".
func (c *Conn) Has(t Table, e Element) (bool, error) {
	_, err := c.c.Query("nftables: look up an element of "+e.Set, t.GetElement(e))
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	return err == nil, err
}
