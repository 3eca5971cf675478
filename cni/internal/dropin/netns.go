package dropin

import (
	"errors"
	"io/fs"

	"github.com/berth-project/berth/cni/internal/netns"
	"github.com/berth-project/berth/cni/internal/podnet"
	"golang.org/x/sys/unix"
)

// openNetns opens the container's namespace and refuses the plugin's own.
func (c *Call) openNetns() (*netns.NS, error) { return podnet.OpenForeign(c.Netns) }

// gone says whether an error is that a namespace's path leads nowhere, which is no obstacle to DEL.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, netns.ErrNotNetNS) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT)
}
