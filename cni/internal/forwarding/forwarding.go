// Package forwarding looks for what would drop a pod's packets although our rules accept them: in netfilter a packet must
// pass every table, and Docker, ufw and firewalld set the policy of the forward hook to drop. It only reads.
package forwarding

import (
	"encoding/binary"
	"fmt"
	"unsafe"

	"github.com/berth-project/berth/cni/internal/nft"
	"golang.org/x/sys/unix"
)

// Obstacles lists, in words, the chains that drop what they do not accept. Whether they accept pods' packets depends on
// their rules, which only their owner understands.
func Obstacles(c *nft.Conn) ([]string, error) {
	chains, err := c.BaseChains()
	if err != nil {
		return nil, err
	}
	var out []string
	families := map[byte]string{unix.NFPROTO_INET: "inet", unix.NFPROTO_IPV4: "ip", unix.NFPROTO_IPV6: "ip6"}
	for _, b := range chains {
		if fam := families[b.Family]; fam != "" && b.Hook == nft.HookForward && b.Drop {
			out = append(out, fmt.Sprintf("chain %s of nftables table %s %s has policy drop", b.Name, fam, b.Table))
		}
	}
	for _, f := range []struct {
		domain, level int
		name          string
		entry         int
	}{{unix.AF_INET, unix.IPPROTO_IP, "iptables-legacy", 112}, {unix.AF_INET6, unix.IPPROTO_IPV6, "ip6tables-legacy", 168}} {
		if legacyDrops(f.domain, f.level, f.entry) {
			out = append(out, "chain FORWARD of "+f.name+" has policy DROP")
		}
	}
	return out, nil
}

// What linux/netfilter_ipv4/ip_tables.h has: two options, a table's header, and the offset of the fields in it.
const (
	soGetInfo    = 64
	soGetEntries = 65
	infoLen      = 84
	underflows   = 32 + 4 + 20
	sizeAt       = infoLen - 4
	entriesHead  = 40
	targetHead   = 32
	dropVerdict  = -1
)

// legacyDrops reads the forward policy of the filter table of the iptables before nftables. entry is the size of an
// entry without matches. A table that nobody uses is not there.
func legacyDrops(domain, level, entry int) bool {
	fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return false
	}
	defer unix.Close(fd) //nolint:errcheck // nothing is written
	if !loaded(domain) {
		return false // asking would make the table
	}
	info := make([]byte, infoLen)
	copy(info, "filter")
	if getsockopt(fd, level, soGetInfo, info) != 0 {
		return false
	}
	size := binary.NativeEndian.Uint32(info[sizeAt:])
	at := int(binary.NativeEndian.Uint32(info[underflows+4*nft.HookForward:]))
	all := make([]byte, entriesHead+int(size))
	copy(all, "filter")
	binary.NativeEndian.PutUint32(all[32:], size)
	if getsockopt(fd, level, soGetEntries, all) != 0 {
		return false
	}
	verdict := entriesHead + at + entry + targetHead
	return verdict+4 <= len(all) && int32(binary.NativeEndian.Uint32(all[verdict:])) == dropVerdict
}

func getsockopt(fd, level, name int, buf []byte) unix.Errno {
	n := uint32(len(buf))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name),
		uintptr(unsafe.Pointer(&buf[0])), uintptr(unsafe.Pointer(&n)), 0)
	return errno
}
