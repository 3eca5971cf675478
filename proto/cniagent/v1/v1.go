// Package v1 is how a container runtime has a resident agent do the work of a CNI plugin instead of executing the plugin:
// the same environment, the same standard input, the same answer, over a Unix stream socket, one invocation to a
// connection. A network configuration whose plugin has the key "agentSocket" offers it; a runtime that does not know the
// key executes the plugin, and both may be mixed at will, since both work on the same state under the same lock.
//
// A message is its length in four bytes, big endian, and JSON. The agent takes requests from uid 0 only, and a runtime
// answers from uid 0 only (SO_PEERCRED). When the runtime hangs up before the answer, as when it would kill the plugin, the
// agent does not begin what it has not begun.
//
// The package imports the standard library and golang.org/x/sys only.
package v1

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"

	"golang.org/x/sys/unix"
)

// Version is the protocol's. An agent that meets another one refuses, and the runtime executes the plugin.
const Version = 1

// MaxMessage bounds a message, in bytes: a configuration of 4 MiB in base64 and the rest.
const MaxMessage = 8 << 20

// Request is an invocation of a plugin.
type Request struct {
	Version int `json:"version"`
	// Env are the CNI_ variables, "KEY=VALUE".
	Env   []string `json:"env"`
	Stdin []byte   `json:"stdin"`
	// Netns is what CNI_NETNS is to the runtime; an agent to which it is something else refuses. Nil where there is none.
	Netns *File `json:"netns,omitempty"`
}

// File identifies a file as long as it lives.
type File struct {
	Dev uint64 `json:"dev"`
	Ino uint64 `json:"ino"`
}

// Identify looks at a file.
func Identify(path string) (*File, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nil, err
	}
	return &File{st.Dev, st.Ino}, nil
}

// Reply is how it ended.
type Reply struct {
	// Refused says why the invocation was not begun; the plugin is to be executed instead.
	Refused string `json:"refused,omitempty"`
	Exit    int    `json:"exit"`
	Stdout  []byte `json:"stdout"`
	// Stderr is for the runtime's log.
	Stderr []byte `json:"stderr,omitempty"`
}

// Write sends one message.
func Write(w io.Writer, message any) error {
	b, err := json.Marshal(message)
	if err != nil {
		return err
	}
	if len(b) > MaxMessage {
		return fmt.Errorf("a message of %d bytes, at most %d", len(b), MaxMessage)
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
	return err
}

// Read receives one message. io.EOF says that the other side went away before it.
func Read(r io.Reader, message any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > MaxMessage {
		return fmt.Errorf("a message of %d bytes, at most %d", n, MaxMessage)
	}
	var b bytes.Buffer // grows with what comes
	if got, err := io.CopyN(&b, r, int64(n)); err != nil {
		if errors.Is(err, io.EOF) && got < int64(n) {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	return json.Unmarshal(b.Bytes(), message)
}

// CheckPeer is an error unless the other side of the connection is root.
func CheckPeer(c *net.UnixConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return err
	}
	if credErr != nil {
		return credErr
	}
	if cred.Uid != 0 {
		return fmt.Errorf("the other side is uid %d, not root", cred.Uid)
	}
	return nil
}
