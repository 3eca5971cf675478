package v1

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/proto/errs"
)

// Limits of a frame. A side that receives more closes the connection.
const (
	MaxBody = 16 << 20 // bytes of JSON
	MaxFds  = 64       // descriptors; the kernel's own limit is 253 (SCM_MAX_FD)
)

const headerSize = 16

type kind uint8

const (
	kindRequest  kind = 1
	kindResponse kind = 2
	kindEvent    kind = 3
)

// frame is one message: a 16-byte little-endian header {body length u32, kind u8, fd count u8, zero u16, id u64}
// and the body. Its descriptors travel as SCM_RIGHTS with the first byte.
type frame struct {
	kind kind
	id   uint64
	body []byte
	fds  []*os.File
}

type envelope struct {
	Method string          `json:"method,omitempty"`
	Class  errs.Class      `json:"class,omitempty"`
	Error  string          `json:"error,omitempty"`
	Body   json.RawMessage `json:"body,omitempty"`
}

// Conn frames messages on a Unix stream socket. Sending is safe from several goroutines, receiving is for one.
type Conn struct {
	uc *net.UnixConn
	mu sync.Mutex // one frame at a time on the wire
}

// NewConn takes a connected socket after checking that the peer is root (SO_PEERCRED).
func NewConn(uc *net.UnixConn) (*Conn, error) {
	raw, err := uc.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return nil, err
	}
	if credErr != nil {
		return nil, fmt.Errorf("SO_PEERCRED: %w", credErr)
	}
	if cred.Uid != 0 {
		return nil, errs.PermissionDenied.Errorf("peer %d has uid %d, only root may speak here", cred.Pid, cred.Uid)
	}
	return &Conn{uc: uc}, nil
}

// Close closes the socket; a blocked receive returns.
func (c *Conn) Close() error { return c.uc.Close() }

func (c *Conn) send(f frame) error {
	if len(f.body) > MaxBody || len(f.fds) > MaxFds {
		return errs.ResourceExhausted.Errorf("message of %d bytes and %d descriptors is over %d and %d", len(f.body), len(f.fds), MaxBody, MaxFds)
	}
	buf := make([]byte, headerSize, headerSize+len(f.body))
	binary.LittleEndian.PutUint32(buf, uint32(len(f.body))) //nolint:gosec // bounded above
	buf[4], buf[5] = byte(f.kind), byte(len(f.fds))
	binary.LittleEndian.PutUint64(buf[8:], f.id)
	buf = append(buf, f.body...)
	var oob []byte
	if len(f.fds) > 0 {
		nums := make([]int, len(f.fds))
		for i, fd := range f.fds {
			nums[i] = int(fd.Fd())
		}
		oob = unix.UnixRights(nums...)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	n, _, err := c.uc.WriteMsgUnix(buf, oob, nil)
	if err != nil || n == len(buf) { // an empty write would see whether the peer has answered and left
		return err
	}
	_, err = c.uc.Write(buf[n:])
	return err
}

func (c *Conn) receive() (f frame, err error) {
	var header [headerSize]byte
	oob := make([]byte, unix.CmsgSpace(MaxFds*4))
	n, oobn, _, _, err := c.uc.ReadMsgUnix(header[:], oob)
	if err != nil {
		return f, err
	}
	if n == 0 {
		return f, io.EOF
	}
	if f.fds, err = parseFds(oob[:oobn]); err != nil {
		return f, err
	}
	defer func() {
		if err != nil {
			closeAll(f.fds)
		}
	}()
	if _, err := io.ReadFull(c.uc, header[n:]); err != nil {
		return f, err
	}
	size := binary.LittleEndian.Uint32(header[:])
	f.kind, f.id = kind(header[4]), binary.LittleEndian.Uint64(header[8:])
	if size > MaxBody || int(header[5]) != len(f.fds) {
		return f, fmt.Errorf("bad frame: %d bytes, %d of %d descriptors", size, len(f.fds), header[5])
	}
	f.body = make([]byte, size)
	_, err = io.ReadFull(c.uc, f.body)
	return f, err
}

func parseFds(oob []byte) ([]*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for i := range msgs {
		nums, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			closeAll(files)
			return nil, err
		}
		for _, fd := range nums {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "scm"))
		}
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

func encode(method string, body any, failure error) ([]byte, error) {
	env := envelope{Method: method}
	if failure != nil {
		env.Class, env.Error = errs.Of(failure), failure.Error()
	} else if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		env.Body = raw
	}
	return json.Marshal(env)
}

func decode(b []byte) (envelope, error) {
	var env envelope
	if err := json.Unmarshal(b, &env); err != nil {
		return env, fmt.Errorf("bad envelope: %w", err)
	}
	return env, nil
}

// failure is the error an envelope carries, with its class, or nil.
func (e envelope) failure() error {
	if e.Class == "" {
		return nil
	}
	return e.Class.Wrap(errors.New(e.Error))
}
