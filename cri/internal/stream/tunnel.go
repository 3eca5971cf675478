package stream

import (
	"bufio"
	"errors"
	"net"
	"net/http"
	"strings"

	"golang.org/x/net/websocket"
)

// tunnelPrefix marks the WebSocket sub-protocols that carry SPDY: "SPDY/3.1+portforward.k8s.io" (KEP-4006).
const tunnelPrefix = "SPDY/3.1+"

// tunnel accepts a WebSocket and serves, on the bytes that flow through it, the SPDY connection that the client has
// opened inside.
func tunnel(inner http.Handler, w http.ResponseWriter, req *http.Request) {
	var spdy string
	server := websocket.Server{
		Handshake: func(c *websocket.Config, _ *http.Request) error {
			for _, p := range c.Protocol {
				if rest, ok := strings.CutPrefix(p, tunnelPrefix); ok {
					c.Protocol, spdy = []string{p}, rest
					return nil
				}
			}
			return errors.New("no sub-protocol starts with " + tunnelPrefix)
		},
		Handler: func(ws *websocket.Conn) {
			ws.PayloadType = websocket.BinaryFrame
			r := req.Clone(req.Context())
			for _, h := range []string{"Sec-Websocket-Protocol", "Sec-Websocket-Key", "Sec-Websocket-Version", "Sec-Websocket-Extensions"} {
				r.Header.Del(h)
			}
			r.Method, r.Body = http.MethodPost, nil
			r.Header.Set("Connection", "Upgrade")
			r.Header.Set("Upgrade", "SPDY/3.1")
			r.Header.Set("X-Stream-Protocol-Version", spdy)
			inner.ServeHTTP(&hijacked{conn: ws, header: http.Header{}}, r)
		},
	}
	server.ServeHTTP(w, req)
}

// hijacked is the response of an inner request whose connection is the tunnel. The inner handler's own answer to
// the upgrade goes nowhere: the WebSocket handshake has answered already. Any other answer ends the tunnel.
type hijacked struct {
	conn   net.Conn
	header http.Header
}

// Header implements http.ResponseWriter.
func (h *hijacked) Header() http.Header { return h.header }

// Write implements http.ResponseWriter.
func (h *hijacked) Write(b []byte) (int, error) { return len(b), nil }

// WriteHeader implements http.ResponseWriter.
func (h *hijacked) WriteHeader(code int) {
	if code != http.StatusSwitchingProtocols {
		_ = h.conn.Close()
	}
}

// Hijack implements http.Hijacker.
func (h *hijacked) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return h.conn, bufio.NewReadWriter(bufio.NewReader(h.conn), bufio.NewWriter(h.conn)), nil
}
