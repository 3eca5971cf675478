package podnet

import (
	"strings"

	"github.com/berth-project/berth/cni/internal/netns"
	"github.com/berth-project/berth/cni/internal/rtnl"
	"github.com/berth-project/berth/cni/internal/state"
)

// collectDead takes off attachments whose namespace died and whose DEL was lost. It returns how many there were.
func (n *Network) collectDead() int {
	records, _, err := n.store.List()
	if err != nil {
		return 0
	}
	ms, err := n.route.Query("list links", rtnl.DumpLinks())
	if err != nil {
		return 0
	}
	alive := map[string]bool{}
	for _, m := range ms {
		if l, ok := rtnl.ParseLink(m); ok {
			alive[l.Name] = true
		}
	}
	dead := 0
	for _, r := range records {
		if r.Pending || !isDead(r, alive) {
			continue
		}
		if err := n.detach(r); err != nil {
			n.remark("collect dead attachment %s: %v", r.Name(), err)
			continue
		}
		n.remark("collected the dead attachment of container %s (addresses %v): its network namespace is gone", r.ContainerID, r.Addrs())
		dead++
	}
	return dead
}

// isDead says whether nothing of the attachment can live. A veth's host end cannot outlive the namespace of its
// peer, so where there is one it decides; else the namespace's path does, which must lead nowhere or elsewhere.
// Paths below /proc end with a process that need not be the namespace's last user: they decide nothing.
func isDead(r *state.Record, alive map[string]bool) bool {
	switch {
	case r.Pod.Link != "":
		return !alive[r.Pod.Link]
	case r.Witness != "":
		return !alive[r.Witness]
	case r.NetnsIno == 0 || strings.HasPrefix(r.Netns, "/proc/"):
		return false
	}
	ns, err := netns.Open(r.Netns)
	if err != nil {
		return true
	}
	defer ns.Close() //nolint:errcheck // read only
	return ns.Ino != r.NetnsIno
}
