package datapath

import "github.com/berth-project/berth/internal/failpoint"

// Between any two of these a killed agent leaves the kernel, and the next one goes on from there.
var (
	beforeDevices    = failpoint.New("netd.apply.before_devices")
	afterDevices     = failpoint.New("netd.apply.after_devices")
	afterGuard       = failpoint.New("netd.apply.after_guard")
	afterNeighbours  = failpoint.New("netd.apply.after_neighbours")
	afterRoutes      = failpoint.New("netd.apply.after_routes")
	afterOldRoutes   = failpoint.New("netd.apply.after_old_routes")
	afterRemovals    = failpoint.New("netd.apply.after_removals")
	betweenHalfBatch = failpoint.New("netd.apply.half_batch")
)

func afterPhase(name string) *failpoint.Point {
	switch name {
	case "neighbours":
		return afterNeighbours
	case "routes":
		return afterRoutes
	case "old routes":
		return afterOldRoutes
	}
	return afterRemovals
}
