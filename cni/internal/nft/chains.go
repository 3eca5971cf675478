package nft

import (
	"encoding/binary"

	"github.com/berth-project/berth/cni/internal/nlwire"
	"golang.org/x/sys/unix"
)

// BaseChain is a base chain of any table, as the kernel lists it.
type BaseChain struct {
	// Family is an NFPROTO number.
	Family      byte
	Table, Name string
	Hook        uint32
	Priority    int32
	// Drop says that the chain drops what no rule of it decides.
	Drop bool
}

// BaseChains lists the base chains of all tables of all families.
func (c *Conn) BaseChains() ([]BaseChain, error) {
	msg := nlwire.New(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETCHAIN, requestFlags|unix.NLM_F_DUMP, []byte{0, 0, 0, 0}).Done()
	ms, err := c.c.Query("nftables: list chains", msg)
	if err != nil {
		return nil, err
	}
	var out []BaseChain
	for _, m := range ms {
		if len(m.Body) < 4 {
			continue
		}
		b, base := BaseChain{Family: m.Body[0]}, false
		nlwire.Attrs(m.Body[4:], func(typ uint16, v []byte) {
			switch typ {
			case unix.NFTA_CHAIN_TABLE:
				b.Table = nlwire.Str(v)
			case unix.NFTA_CHAIN_NAME:
				b.Name = nlwire.Str(v)
			case unix.NFTA_CHAIN_POLICY:
				b.Drop = len(v) == 4 && binary.BigEndian.Uint32(v) == 0
			case unix.NFTA_CHAIN_HOOK:
				base = true
				nlwire.Attrs(v, func(typ uint16, v []byte) {
					switch {
					case typ == unix.NFTA_HOOK_HOOKNUM && len(v) == 4:
						b.Hook = binary.BigEndian.Uint32(v)
					case typ == unix.NFTA_HOOK_PRIORITY && len(v) == 4:
						b.Priority = int32(binary.BigEndian.Uint32(v))
					}
				})
			}
		})
		if base {
			out = append(out, b)
		}
	}
	return out, nil
}
