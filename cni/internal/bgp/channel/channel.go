// Package channel is what crosses the socketpair between the agent and berth-bgp: messages in JSON, each behind its
// length. Both ends bound what they read, and neither trusts the other's numbers: Read allocates no more than the
// bytes that have come, and CheckReport refuses whatever the agent could not carry out.
//
//	agent ── ToChild: Set (configuration, passwords), Stop ──▶ berth-bgp
//	agent ◀── ToParent: Hello, Applied, Routes, Synced, Peers ── berth-bgp
//
// The end of either process ends the stream, and so the other's part in it.
package channel

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"

	"github.com/berth-project/berth/cni/internal/bgp"
)

// Version is that of the messages; a child that says another is not spoken with.
const Version = 1

// Bounds in bytes of one message: a configuration of 20,000 announcements is 3 MB; reports come in pieces.
const (
	MaxToChild  = 16 << 20
	MaxToParent = 2 << 20
)

// MaxBatch is the most routes in one report.
const MaxBatch = 2000

// ToChild is one order. Just one of its fields is set.
type ToChild struct {
	Set  *Set  `json:"set,omitempty"`
	Stop *Stop `json:"stop,omitempty"`
}

// Set makes the child what Config says, as a difference to what it is.
type Set struct {
	// ID is echoed by Applied.
	ID uint64 `json:"id"`
	// Config has no passwords in it; Passwords has, by the peer's address.
	Config    bgp.Config            `json:"config"`
	Passwords map[netip.Addr]string `json:"passwords,omitempty"`
	// Restarting says that this child follows one whose routes the kernel still has: peers are told so
	// (RFC 4724 §4.1). It counts only in a child's first Set.
	Restarting bool `json:"restarting,omitempty"`
}

// Stop ends the child.
type Stop struct {
	// Graceful leaves without a word, so that peers keep our routes for the restart time; else they are told to
	// forget them (Cease).
	Graceful bool `json:"graceful,omitempty"`
}

// ToParent is one report. Just one of its fields is set.
type ToParent struct {
	Hello   *Hello   `json:"hello,omitempty"`
	Applied *Applied `json:"applied,omitempty"`
	Routes  *Routes  `json:"routes,omitempty"`
	Synced  *Synced  `json:"synced,omitempty"`
	Peers   *Peers   `json:"peers,omitempty"`
}

// Hello is the first report of every child.
type Hello struct {
	Version int    `json:"version"`
	Program string `json:"program"` // its own version, shown
}

// Applied answers Set.
type Applied struct {
	ID uint64 `json:"id"`
	// Error is what could not be carried out; the rest was.
	Error string `json:"error,omitempty"`
}

// Routes is a difference: Changed replace what was known of their prefixes, Withdrawn have no path left.
type Routes struct {
	Changed   []bgp.Route    `json:"changed,omitempty"`
	Withdrawn []netip.Prefix `json:"withdrawn,omitempty"`
}

// Synced names peers that have said all they know (End-of-RIB, RFC 4724 §2), or that never will: what this child has
// not reported of them by now, they do not have.
type Synced struct {
	Peers []netip.Addr `json:"peers"`
}

// Peers is the state of every session.
type Peers struct {
	Peers []bgp.PeerStatus `json:"peers"`
}

// NewSet takes the passwords out of c.
func NewSet(id uint64, c bgp.Config, restarting bool) *Set {
	s := &Set{ID: id, Config: c, Restarting: restarting, Passwords: map[netip.Addr]string{}}
	for _, p := range c.Peers {
		if pw := p.Password.Reveal(); pw != "" {
			s.Passwords[p.Address] = pw
		}
	}
	return s
}

// Whole is the configuration with its passwords.
func (s *Set) Whole() bgp.Config {
	c := s.Config
	c.Peers = append([]bgp.Peer(nil), c.Peers...)
	for i, p := range c.Peers {
		c.Peers[i].Password = bgp.NewSecret(s.Passwords[p.Address])
	}
	return c
}

// ErrTooLong is a message beyond its bound. The stream cannot be read on.
var ErrTooLong = errors.New("a message is longer than its bound")

// Write sends one message, of at most limit bytes.
func Write(w io.Writer, v any, limit int) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(body) > limit {
		return fmt.Errorf("%w: %d bytes, at most %d", ErrTooLong, len(body), limit)
	}
	buf := make([]byte, 4, 4+len(body))
	binary.BigEndian.PutUint32(buf, uint32(len(body)))
	_, err = w.Write(append(buf, body...))
	return err
}

// Read takes one message of at most limit bytes into v, which has no field that the message's sender could abuse:
// unknown keys are errors, and so is anything behind the value. At the stream's end it is io.EOF.
func Read(r io.Reader, v any, limit int) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[:])
	if int64(n) > int64(limit) {
		return fmt.Errorf("%w: %d bytes, at most %d", ErrTooLong, n, limit)
	}
	var body bytes.Buffer
	if got, err := io.CopyN(&body, r, int64(n)); err != nil {
		return fmt.Errorf("a message of %d bytes ends after %d: %w", n, got, io.ErrUnexpectedEOF)
	}
	d := json.NewDecoder(&body)
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("a message that cannot be read: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("a message with something behind it")
	}
	return nil
}
