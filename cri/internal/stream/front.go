package stream

import (
	"net/http"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/proto/errs"
)

// creationLimit is how long a client over SPDY may take to make the streams it needs.
const creationLimit = remotecommand.DefaultStreamCreationTimeout

// front hands out URLs and serves the streams that they promise. What current clients ask for over WebSocket and the
// library does not speak is served here: v5.channel.k8s.io for exec and attach, SPDY in a tunnel for port-forward; the rest
// is the library's.
type front struct {
	base    string // URL of the server, without a path
	runtime runtime
	tickets tickets
}

func newFront(base string, r runtime) *front {
	return &front{base: base, runtime: r, tickets: tickets{pending: map[string]ticket{}}}
}

// GetExec gives the URL of an exec. InvalidArgument: no container, no stream, or a terminal with a stderr of its own.
// ResourceExhausted: too many URLs are not used yet.
func (f *front) GetExec(req *cri.ExecRequest) (*cri.ExecResponse, error) {
	url, err := f.promise("/exec/", ticket{exec: req})
	if err != nil {
		return nil, err
	}
	return &cri.ExecResponse{Url: url}, nil
}

// GetAttach gives the URL of an attach. Its errors are those of GetExec.
func (f *front) GetAttach(req *cri.AttachRequest) (*cri.AttachResponse, error) {
	url, err := f.promise("/attach/", ticket{attach: req})
	if err != nil {
		return nil, err
	}
	return &cri.AttachResponse{Url: url}, nil
}

// GetPortForward gives the URL of a port-forward. InvalidArgument: no pod. ResourceExhausted: as GetExec.
func (f *front) GetPortForward(req *cri.PortForwardRequest) (*cri.PortForwardResponse, error) {
	url, err := f.promise("/portforward/", ticket{forward: req})
	if err != nil {
		return nil, err
	}
	return &cri.PortForwardResponse{Url: url}, nil
}

func (f *front) promise(verb string, t ticket) (url string, err error) {
	if err := t.check(); err != nil {
		return "", err
	}
	path, err := f.tickets.issue(verb, t, time.Now())
	return f.base + path, err
}

// check refuses what no client can mean.
func (t ticket) check() error {
	if t.forward != nil {
		if t.forward.GetPodSandboxId() == "" {
			return errs.InvalidArgument.Errorf("pod_sandbox_id must be set")
		}
		return nil
	}
	w := shape(t)
	switch {
	case t.container() == "":
		return errs.InvalidArgument.Errorf("container_id must be set")
	case w.tty && w.stderr:
		return errs.InvalidArgument.Errorf("tty and stderr: a terminal has no stderr of its own")
	case !w.stdin && !w.stdout && !w.stderr:
		return errs.InvalidArgument.Errorf("one of stdin, stdout and stderr must be set")
	}
	return nil
}

// ServeHTTP implements http.Handler.
func (f *front) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if req.Method != http.MethodGet && req.Method != http.MethodPost { // WebSocket, SPDY
		http.Error(w, "GET or POST", http.StatusMethodNotAllowed)
		return
	}
	t, ok := f.tickets.spend(req.URL.Path, time.Now())
	switch {
	case !ok:
		w.Header().Set("Connection", "close")
		http.Error(w, "no such stream: its URL is good once, for a minute", http.StatusNotFound)
	case t.forward != nil && wsstream.IsWebSocketRequestWithTunnelingProtocol(req):
		tunnel(f.forward(t.forward), w, req)
	case t.forward != nil:
		f.forward(t.forward).ServeHTTP(w, req)
	case wsstream.IsWebSocketRequestWithStreamCloseProtocol(req):
		f.serveV5(w, req, t)
	default:
		f.serveCommand(w, req, t)
	}
}

// forward serves a port-forward by the library.
func (f *front) forward(r *cri.PortForwardRequest) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		ports, err := portforward.BuildV4Options(r.GetPort())
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		portforward.ServePortForward(w, req, f.runtime, r.GetPodSandboxId(), "", ports, idleLimit, creationLimit, portforward.SupportedProtocols)
	}
}

// serveCommand serves an exec or an attach by the library.
func (f *front) serveCommand(w http.ResponseWriter, req *http.Request, t ticket) {
	want, protocols := shape(t), remotecommand.SupportedStreamingProtocols
	opts := &remotecommand.Options{Stdin: want.stdin, Stdout: want.stdout, Stderr: want.stderr, TTY: want.tty}
	if t.exec != nil {
		remotecommand.ServeExec(w, req, f.runtime, "", "", t.container(), t.exec.GetCmd(), opts, idleLimit, creationLimit, protocols)
		return
	}
	remotecommand.ServeAttach(w, req, f.runtime, "", "", t.container(), opts, idleLimit, creationLimit, protocols)
}
