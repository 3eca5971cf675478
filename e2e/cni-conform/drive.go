package conform

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// NewHost makes a machine of its own: a namespace with an uplink to a client outside.
func NewHost() (*Host, error) { return newHost() }

// Close ends the host and its containers.
func (h *Host) Close() { h.close() }

// NewContainer makes a container's namespace.
func (h *Host) NewContainer() (*Netns, error) {
	n, err := newNetns("c")
	if err == nil {
		h.containers = append(h.containers, n)
	}
	return n, err
}

// Vanish takes the namespace away.
func (n *Netns) Vanish() { n.vanish() }

// Run executes a program on the host, with a plugin's environment if it is one, and says how long it took from start to
// end.
func (h *Host) Run(env []string, stdin, program string, args ...string) (out []byte, took time.Duration, err error) {
	cmd := exec.Command(program, args...)
	cmd.Env = append(env, "PATH="+os.Getenv("PATH"))
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = h.do(func() error {
		start := time.Now()
		err := cmd.Run()
		took = time.Since(start)
		return err
	})
	if err != nil {
		err = fmt.Errorf("%s: %w: %s%s", program, err, stdout.String(), stderr.String())
	}
	return stdout.Bytes(), took, err
}

// Outside is the client on the other side of the host's uplink.
func (h *Host) Outside() *Netns { return h.outside }

// HostIP and OutsideIP are the two ends of the uplink.
const (
	HostIP    = hostIP
	OutsideIP = outsideIP
)

// Sh runs one command (no shell) in the namespace.
func (n *Netns) Sh(line string) (string, error) { return n.sh(line) }

// Do runs fn on a thread in the namespace.
func (n *Netns) Do(fn func() error) error { return n.do(fn) }

// Serve answers on a TCP or UDP port with the peer's address until the process ends.
func (n *Netns) Serve(network string, port int) error {
	_, err := n.serve(network, port)
	return err
}

// Ask connects and returns whom the server saw; empty if there is no answer.
func (n *Netns) Ask(network, addr string) string { return n.ask(network, addr) }
