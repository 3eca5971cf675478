package network

import (
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"time"
)

const (
	// farewell is how long a pod may say nothing, once its client has said all, before the connection is closed. Whoever
	// answers at all begins long before; a client that has only closed its sending side gets its answer.
	farewell = 30 * time.Second
	// congested is how long a pod may take nothing of what its client sends.
	congested = 10 * time.Minute
)

// Forward copies between a stream and a connection until the pod's side ends, or the client's has ended and the pod has said
// nothing for half a minute, or the pod has taken nothing for ten; then it closes the connection.
func Forward(conn net.Conn, stream io.ReadWriter) error {
	return forward(&forwarded{conn: conn, farewell: farewell, congested: congested}, stream)
}

func forward(conn *forwarded, stream io.ReadWriter) error {
	go func() { //nolint:gocritic // ends with either side: the stream is its owner's, who closes it after this function
		_, _ = io.Copy(conn, stream) // why does not matter: a pod that takes no more may have an answer under way
		conn.leave()
	}()
	_, err := io.Copy(stream, conn)
	if conn.left.Load() && errors.Is(err, os.ErrDeadlineExceeded) {
		err = nil // nobody waits for an answer that does not come
	}
	return errors.Join(err, conn.conn.Close())
}

// forwarded is a connection to a pod, with the pod's time limits.
type forwarded struct {
	conn                net.Conn
	farewell, congested time.Duration
	left                atomic.Bool // nothing more comes from the client
}

// leave tells the pod that nothing more comes, and begins to count its silence.
func (f *forwarded) leave() {
	f.left.Store(true)
	if c, ok := f.conn.(*net.TCPConn); ok {
		_ = c.CloseWrite() // a connection that is gone already ends the other direction too
	}
	_ = f.conn.SetReadDeadline(time.Now().Add(f.farewell)) // as above
}

// Read implements io.Reader.
func (f *forwarded) Read(b []byte) (int, error) {
	if f.left.Load() {
		if err := f.conn.SetReadDeadline(time.Now().Add(f.farewell)); err != nil {
			return 0, err
		}
	}
	return f.conn.Read(b)
}

// Write implements io.Writer.
func (f *forwarded) Write(b []byte) (int, error) {
	if err := f.conn.SetWriteDeadline(time.Now().Add(f.congested)); err != nil {
		return 0, err
	}
	return f.conn.Write(b)
}
