// Package core is what crosses the socket between berth-gpu, which has the inventory and the ledger, and
// berth-gpu-dra, which has the API server: who is there, and who holds what. The two are installed together.
package core

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/berth-project/berth/deviceplugin/internal/view"
	"github.com/berth-project/berth/proto/errs"
)

// Request asks for devices for a claim: UUIDs for it alone, Admin beside whoever has them.
type Request struct {
	UUIDs []string `json:"uuids"`
	Admin []string `json:"admin,omitempty"`
}

// Answer is what a claim got: the CDI names in the order of the request, Admin's last. Or an error, with its class.
type Answer struct {
	CDI   []string   `json:"cdi,omitempty"`
	Class errs.Class `json:"class,omitempty"`
	Error string     `json:"error,omitempty"`
}

// Write writes an answer, or the error.
func Write(w http.ResponseWriter, a Answer, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		a = Answer{Class: errs.Of(err), Error: err.Error()}
		w.WriteHeader(http.StatusConflict)
	}
	_ = json.NewEncoder(w).Encode(a) // a client that went away asks again
}

// Client asks berth-gpu on its debug socket.
type Client struct{ http http.Client }

// New makes a client of a socket; it connects with its first call.
func New(socket string) *Client {
	return &Client{http.Client{Timeout: 40 * time.Second, Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}}}}
}

func (c *Client) call(ctx context.Context, method, path string, body any, into any) error {
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://berth"+path, bytes.NewReader(b))
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return errs.Unavailable.Errorf("berth-gpu: %w", err)
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	b, err = io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err != nil {
		return err
	}
	if resp.StatusCode == http.StatusOK {
		return json.Unmarshal(b, into)
	}
	var a Answer
	if err := json.Unmarshal(b, &a); err != nil || a.Error == "" {
		return fmt.Errorf("berth-gpu: %s: %s", resp.Status, b)
	}
	return a.Class.Wrap(errors.New(a.Error))
}

// View is what berth-gpu knows.
func (c *Client) View(ctx context.Context) (v view.View, err error) {
	return v, c.call(ctx, http.MethodGet, "/status", nil, &v)
}

// Claim takes held for a claim, and names admin. Asking again for the same is no error.
func (c *Client) Claim(ctx context.Context, uid string, held, admin []string) ([]string, error) {
	var a Answer
	err := c.call(ctx, http.MethodPut, "/claims/"+url.PathEscape(uid), Request{held, admin}, &a)
	return a.CDI, err
}

// Release gives a claim's devices back; a claim that has none is no error.
func (c *Client) Release(ctx context.Context, uid string) error {
	return c.call(ctx, http.MethodDelete, "/claims/"+url.PathEscape(uid), nil, &Answer{})
}
