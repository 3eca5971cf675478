// Package sdnotify tells systemd how far a daemon has come: the datagram of sd_notify(3).
package sdnotify

import (
	"net"
	"os"
)

// Send tells a state ("READY=1", "STOPPING=1"). Without systemd there is nobody to tell.
func Send(state string) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return
	}
	_, _ = c.Write([]byte(state)) // systemd's own timeout notices a lost word
	_ = c.Close()
}
