// Package kubenode is this node's object at the API server: its labels watched, and ours kept on it. It speaks plain
// HTTP and asks for metadata alone (PartialObjectMetadata, meta.k8s.io/v1), so that berth-gpu needs no client-go: two
// verbs on one object are 300 lines, client-go is 34 MB of program.
//
// It knows nothing of GPUs, and decides nothing.
package kubenode

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/berth-project/berth/proto/errs"
)

// Node is what is read of the object.
type Node struct {
	Labels      map[string]string
	Annotations map[string]string
	// Version is the resourceVersion, from which a watch goes on.
	Version string
}

// Client asks for one node. It connects with its first call.
type Client struct {
	server string
	name   string
	http   *http.Client
	token  func() (string, error)
}

// limits of what is read of an answer, in bytes: metadata of one object is a few KiB; a watch is begun anew after its.
const (
	maxAnswer = 4 << 20
	maxWatch  = 64 << 20
)

// timeouts: of a call, and of a watch before the server ends it; one that brings nothing for longer than that, and a
// minute, is dead.
const (
	callTime  = 10 * time.Second
	watchTime = 5 * time.Minute
)

// partial is metav1.PartialObjectMetadata, or of a watch's event; a metav1.Status where it failed.
type partial struct {
	Metadata struct {
		Labels      map[string]string `json:"labels"`
		Annotations map[string]string `json:"annotations"`
		Version     string            `json:"resourceVersion"`
	} `json:"metadata"`
	Message string `json:"message"`
	Code    int    `json:"code"`
}

func (p partial) node() Node {
	return Node{Labels: p.Metadata.Labels, Annotations: p.Metadata.Annotations, Version: p.Metadata.Version}
}

const asMetadata = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"

// do makes a request; the caller closes the answer's body. A refusal is an error with the server's own words.
func (c *Client) do(ctx context.Context, method, path, kind string, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.server+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	token, err := c.token()
	if err != nil {
		return nil, errs.Unauthenticated.Errorf("node %s: %w", c.name, err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	req.Header.Set("Accept", asMetadata)
	req.Header.Set("User-Agent", "berth-gpu")
	if kind != "" {
		req.Header.Set("Content-Type", kind)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, errs.Unavailable.Errorf("node %s: %w", c.name, err)
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close() //nolint:errcheck // read only
		return nil, c.refusal(resp)
	}
	return resp, nil
}

// refusal is what the server says instead of an answer.
func (c *Client) refusal(resp *http.Response) error {
	var p partial
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil || json.Unmarshal(b, &p) != nil || p.Message == "" {
		p.Message = resp.Status
	}
	return class(resp.StatusCode).Errorf("node %s: %s", c.name, p.Message)
}

func class(code int) errs.Class {
	switch code {
	case http.StatusNotFound:
		return errs.NotFound
	case http.StatusUnauthorized:
		return errs.Unauthenticated
	case http.StatusForbidden:
		return errs.PermissionDenied
	case http.StatusGone:
		return errs.OutOfRange
	case http.StatusBadRequest, http.StatusUnprocessableEntity:
		return errs.InvalidArgument
	}
	return errs.Unavailable
}

func (c *Client) path() string { return "/api/v1/nodes/" + url.PathEscape(c.name) }

// Get reads the node. One that is not there is NotFound; a server that does not answer is Unavailable.
func (c *Client) Get(ctx context.Context) (Node, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	resp, err := c.do(ctx, http.MethodGet, c.path(), "", nil)
	if err != nil {
		return Node{}, err
	}
	return c.read(resp)
}

func (c *Client) read(resp *http.Response) (Node, error) {
	defer resp.Body.Close() //nolint:errcheck // read only
	var p partial
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(&p); err != nil {
		return Node{}, errs.Unavailable.Errorf("node %s: %w", c.name, err)
	}
	return p.node(), nil
}

// Patch applies a JSON merge patch (RFC 7386), as [Compile] makes it, and returns what the node is then.
func (c *Client) Patch(ctx context.Context, patch []byte) (Node, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	resp, err := c.do(ctx, http.MethodPatch, c.path(), "application/merge-patch+json", patch)
	if err != nil {
		return Node{}, err
	}
	return c.read(resp)
}

// pauses between attempts of a watch.
const (
	firstPause = 200 * time.Millisecond
	maxPause   = 30 * time.Second
)

// Watch calls see with the node, and again after each change, until ctx ends. While the server cannot be asked it
// calls lost, once, and tries again, at last every half a minute; what was seen last still holds then.
func (c *Client) Watch(ctx context.Context, see func(Node), lost func(error)) error {
	pause, said := firstPause, false
	for ctx.Err() == nil {
		n, err := c.Get(ctx)
		if err == nil {
			pause, said = firstPause, false
			see(n)
			err = c.follow(ctx, n.Version, see)
		}
		if err == nil || ctx.Err() != nil {
			continue // the server ends each watch in time
		}
		if !said && errs.Of(err) != errs.OutOfRange {
			said = true
			lost(err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(pause*2, maxPause)
	}
	return nil
}

// follow reads one watch to its end.
func (c *Client) follow(ctx context.Context, version string, see func(Node)) error {
	ctx, cancel := context.WithTimeout(ctx, watchTime+time.Minute)
	defer cancel()
	q := url.Values{
		"watch": {"1"}, "fieldSelector": {"metadata.name=" + c.name}, "resourceVersion": {version},
		"timeoutSeconds": {fmt.Sprint(int(watchTime.Seconds()))},
	}
	resp, err := c.do(ctx, http.MethodGet, "/api/v1/nodes?"+q.Encode(), "", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	for d := json.NewDecoder(io.LimitReader(resp.Body, maxWatch)); ; {
		var e struct {
			Type   string  `json:"type"`
			Object partial `json:"object"`
		}
		switch err := d.Decode(&e); {
		case err == io.EOF: //nolint:errorlint // a decoder's own, never wrapped
			return nil
		case err != nil:
			return errs.Unavailable.Errorf("node %s: watch: %w", c.name, err)
		}
		switch e.Type {
		case "ADDED", "MODIFIED":
			see(e.Object.node())
		case "DELETED":
			return errs.NotFound.Errorf("node %s is deleted", c.name)
		case "ERROR":
			return class(e.Object.Code).Errorf("node %s: watch: %s", c.name, e.Object.Message)
		}
	}
}
