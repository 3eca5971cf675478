package stream

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"
	utilexec "k8s.io/utils/exec"
)

// The channels of remote command streaming, by number (k8s.io/apimachinery/pkg/util/remotecommand).
const (
	channelStdin = iota
	channelStdout
	channelStderr
	channelError
	channelResize
)

// idleLimit ends a stream on which nothing moved, as the library does over SPDY.
const idleLimit = 4 * time.Hour

// protocolV5 is v4.channel.k8s.io with a way to close stdin (KEP-4006).
const protocolV5 = "v5.channel.k8s.io"

// serveV5 runs an exec or an attach over a v5 WebSocket.
func (f *front) serveV5(w http.ResponseWriter, req *http.Request, t ticket) {
	want := shape(t)
	conn := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{protocolV5: {Binary: true, Channels: want.channels()}})
	conn.SetIdleTimeout(idleLimit)
	_, streams, err := conn.Open(w, req)
	if err != nil {
		return // the handshake has answered
	}
	defer conn.Close() //nolint:errcheck // both sides are done
	// an empty message tells the client that the connection stands, even if the process never prints
	_, _ = streams[channelStdout].Write([]byte{})
	var in io.Reader
	var out, errOut io.WriteCloser
	if want.stdin {
		in = streams[channelStdin]
	}
	if want.stdout {
		out = streams[channelStdout]
	}
	if want.stderr {
		errOut = streams[channelStderr]
	}
	var sizes chan remotecommand.TerminalSize
	if want.tty {
		sizes = make(chan remotecommand.TerminalSize)
		done := make(chan struct{})
		defer close(done)
		go readSizes(streams[channelResize], sizes, done) //nolint:gocritic // ends with the connection
	}
	if t.exec != nil {
		err = f.runtime.ExecInContainer(req.Context(), "", "", t.container(), t.exec.GetCmd(), in, out, errOut, want.tty, sizes, 0)
	} else {
		err = f.runtime.AttachContainer(req.Context(), "", "", t.container(), in, out, errOut, want.tty, sizes)
	}
	_, _ = streams[channelError].Write(status(err)) // the client may be gone
}

// wanted are the streams a client asked for.
type wanted struct{ stdin, stdout, stderr, tty bool }

func shape(t ticket) wanted {
	if t.exec != nil {
		return wanted{t.exec.GetStdin(), t.exec.GetStdout(), t.exec.GetStderr(), t.exec.GetTty()}
	}
	return wanted{t.attach.GetStdin(), t.attach.GetStdout(), t.attach.GetStderr(), t.attach.GetTty()}
}

func (w wanted) channels() []wsstream.ChannelType {
	pick := func(on bool, kind wsstream.ChannelType) wsstream.ChannelType {
		if on {
			return kind
		}
		return wsstream.IgnoreChannel
	}
	return []wsstream.ChannelType{
		channelStdin:  pick(w.stdin, wsstream.ReadChannel),
		channelStdout: pick(w.stdout, wsstream.WriteChannel),
		channelStderr: pick(w.stderr, wsstream.WriteChannel),
		channelError:  wsstream.WriteChannel,
		channelResize: wsstream.ReadChannel,
	}
}

// readSizes passes on the terminal sizes a client sends, one JSON object each.
func readSizes(r io.Reader, to chan<- remotecommand.TerminalSize, done <-chan struct{}) {
	d := json.NewDecoder(r)
	for {
		var s remotecommand.TerminalSize
		if d.Decode(&s) != nil {
			return
		}
		select {
		case to <- s:
		case <-done:
			return
		}
	}
}

// status is the end of a stream as clients of v4 and v5 read it: a metav1.Status in JSON.
func status(err error) []byte {
	type cause struct {
		Reason  string `json:"reason"`
		Message string `json:"message"`
	}
	type details struct {
		Causes []cause `json:"causes"`
	}
	s := struct {
		Metadata struct{} `json:"metadata"`
		Status   string   `json:"status"`
		Message  string   `json:"message,omitempty"`
		Reason   string   `json:"reason,omitempty"`
		Details  *details `json:"details,omitempty"`
		Code     int      `json:"code,omitempty"`
	}{Status: "Success"}
	var exit utilexec.ExitError
	switch {
	case errors.As(err, &exit):
		s.Status, s.Reason, s.Message = "Failure", "NonZeroExitCode", err.Error()
		s.Details = &details{[]cause{{Reason: "ExitCode", Message: strconv.Itoa(exit.ExitStatus())}}}
	case err != nil:
		s.Status, s.Reason, s.Message, s.Code = "Failure", "InternalError", err.Error(), http.StatusInternalServerError
	}
	b, _ := json.Marshal(s) //nolint:errchkjson // plain strings
	return b
}
