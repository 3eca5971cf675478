package stream

import (
	"net/http"
	"path"
	"strings"
	"sync"
	"time"

	"k8s.io/cri-streaming/pkg/streaming"
	"k8s.io/streaming/pkg/httpstream/wsstream"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/proto/errs"
)

// tokenLife is how long a URL may be used, once; the library's own is the same.
const tokenLife = time.Minute

// front stands before the library's handler and adds what current clients ask for over WebSocket and the library
// does not speak: v5.channel.k8s.io for exec and attach, SPDY in a tunnel for port-forward. It remembers the
// request of each token, so that a token is spent whichever way it is used.
type front struct {
	streaming.Server
	runtime runtime

	mu      sync.Mutex
	pending map[string]ticket // by token
	spent   map[string]time.Time
}

// ticket is one promised stream; exactly one of the two is set.
type ticket struct {
	exec   *cri.ExecRequest
	attach *cri.AttachRequest
	until  time.Time
}

func newFront(s streaming.Server, r runtime) *front {
	return &front{Server: s, runtime: r, pending: map[string]ticket{}, spent: map[string]time.Time{}}
}

// GetExec implements streaming.Server.
func (f *front) GetExec(req *cri.ExecRequest) (*cri.ExecResponse, error) {
	resp, err := f.Server.GetExec(req)
	if err == nil {
		f.remember(resp.GetUrl(), ticket{exec: req})
	}
	return resp, err
}

// GetAttach implements streaming.Server.
func (f *front) GetAttach(req *cri.AttachRequest) (*cri.AttachResponse, error) {
	resp, err := f.Server.GetAttach(req)
	if err == nil {
		f.remember(resp.GetUrl(), ticket{attach: req})
	}
	return resp, err
}

func (f *front) remember(url string, t ticket) {
	now := time.Now()
	t.until = now.Add(tokenLife)
	f.mu.Lock()
	defer f.mu.Unlock()
	for token, old := range f.pending {
		if old.until.Before(now) {
			delete(f.pending, token)
		}
	}
	for token, until := range f.spent {
		if until.Before(now) {
			delete(f.spent, token)
		}
	}
	f.pending[path.Base(url)] = t
}

// spend takes a token out of use. A second use is NotFound.
func (f *front) spend(token string) (ticket, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, again := f.spent[token]; again {
		return ticket{}, errs.NotFound.Errorf("this URL was used already")
	}
	t := f.pending[token]
	delete(f.pending, token)
	f.spent[token] = time.Now().Add(2 * tokenLife)
	return t, nil
}

// ServeHTTP implements http.Handler.
func (f *front) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	t, err := f.spend(path.Base(req.URL.Path))
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	switch {
	case strings.HasPrefix(req.URL.Path, "/portforward/") && wsstream.IsWebSocketRequestWithTunnelingProtocol(req):
		tunnel(f.Server, w, req)
	case wsstream.IsWebSocketRequestWithStreamCloseProtocol(req) && (t.exec != nil || t.attach != nil) && time.Now().Before(t.until):
		f.serveV5(w, req, t)
	default:
		f.Server.ServeHTTP(w, req)
	}
}
