package hostlocal

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/berth-project/berth/cni/internal/netns"
	"github.com/berth-project/berth/cni/internal/nlwire"
	"github.com/berth-project/berth/cni/internal/rtnl"
	"golang.org/x/sys/unix"
)

// liveAddrs are the addresses of all interfaces in all network namespaces that a process is in or that are mounted.
func liveAddrs() (map[netip.Addr]bool, error) {
	paths, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		return nil, err
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	for line := range bytes.Lines(mounts) {
		if f := bytes.Fields(line); len(f) > 4 && bytes.HasPrefix(f[3], []byte("net:[")) {
			paths = append(paths, string(f[4]))
		}
	}
	seen, out := map[uint64]bool{}, map[netip.Addr]bool{}
	for _, p := range paths {
		ns, err := netns.Open(p)
		if err != nil {
			continue // the process has just ended
		}
		if !seen[ns.Ino] {
			seen[ns.Ino] = true
			err = ns.Do(func() error { return addrs(out) })
		}
		_ = ns.Close()
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

func addrs(out map[netip.Addr]bool) error {
	c, err := nlwire.Dial(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // read only
	ms, err := c.Query("list addresses", rtnl.DumpAddrs())
	if err != nil {
		return err
	}
	for _, m := range ms {
		if _, a, ok := rtnl.ParseAddr(m); ok {
			out[a] = true
		}
	}
	return nil
}
