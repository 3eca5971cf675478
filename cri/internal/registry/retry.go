package registry

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/berth-project/berth/proto/errs"
)

// Unreachable starts the text of every error that means "the registry cannot be reached": the kubelet looks for
// it (cri-api pkg/errors, ErrRegistryUnavailable).
const Unreachable = "RegistryUnavailable: "

// retrying sends req until the answer is worth having: connection failures, 408, 429 and 5xx are tried again
// after a pause that doubles, or that the registry asked for. req must have no body, or GetBody.
func (c *conn) retrying(req *http.Request, via http.RoundTripper) (*http.Response, error) {
	ctx := req.Context()
	for try := 1; ; try++ {
		if try > 1 && req.GetBody != nil {
			body, err := req.GetBody()
			if err != nil {
				return nil, err
			}
			req.Body = body
		}
		resp, err := via.RoundTrip(req)
		if ctx.Err() != nil {
			if err == nil {
				drain(resp)
			}
			return nil, ctx.Err()
		}
		wait := c.pause(try)
		switch {
		case err == nil && !transient(resp.StatusCode):
			return resp, nil
		case err != nil:
			err = connError(c.scheme(req), req.URL.Host, err)
		default:
			err = statusError(resp, req.URL.Scheme+"://"+req.URL.Host, strings.TrimPrefix(req.URL.Path, "/"))
			if after, ok := retryAfter(resp, time.Now()); ok {
				wait = max(wait, after)
			}
			drain(resp)
		}
		if try >= c.cfg.Attempts || try >= 2 && noPoint(err) || wait > c.cfg.MaxRetryAfter {
			return nil, err
		}
		if err := sleep(ctx, wait); err != nil {
			return nil, err
		}
	}
}

// noPoint tells errors that more than one more try will not cure: nobody listens, no such name, a bad certificate.
func noPoint(err error) bool {
	var dns *net.DNSError
	var cert *tls.CertificateVerificationError
	var plain tls.RecordHeaderError
	return errors.Is(err, syscall.ECONNREFUSED) || errors.As(err, &dns) && dns.IsNotFound ||
		errors.As(err, &cert) || errors.As(err, &plain)
}

// pause is the wait after the given try: Backoff doubled each time up to 10 s, half of it random.
func (c *conn) pause(try int) time.Duration {
	d := min(c.cfg.Backoff<<min(try-1, 16), 10*time.Second)
	return d/2 + rand.N(d/2+1) //nolint:gosec // jitter
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func transient(status int) bool {
	return status == http.StatusRequestTimeout || status == http.StatusTooManyRequests ||
		status >= 500 && status != http.StatusNotImplemented
}

// retryAfter reads Retry-After: seconds or a date.
func retryAfter(resp *http.Response, now time.Time) (time.Duration, bool) {
	v := resp.Header.Get("Retry-After")
	if v == "" {
		return 0, false
	}
	if n, err := strconv.ParseUint(v, 10, 31); err == nil {
		return time.Duration(n) * time.Second, true
	}
	if t, err := http.ParseTime(v); err == nil {
		return max(0, t.Sub(now)), true
	}
	return 0, false
}

// connError classes a failure to get any answer. Its text never holds a query, which may carry a signature.
func connError(scheme, addr string, err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	hint := ""
	var plain tls.RecordHeaderError
	if errors.As(err, &plain) {
		hint = " (if it speaks plain http, say so in its hosts.toml: server = \"http://" + addr + "\")"
	}
	return errs.Unavailable.Errorf(Unreachable+"%s://%s: %w%s", scheme, addr, err, hint)
}

// scheme is what req was sent by, for messages: a guessed one may have turned out otherwise.
func (c *conn) scheme(req *http.Request) string {
	if c.plainHTTP() && req.URL.Host == c.host.addr {
		return "http"
	}
	return req.URL.Scheme
}

// statusError is the error for an answer that is none of 2xx; it reads a little of the body for its message.
func statusError(resp *http.Response, at, what string) error {
	text := fmt.Sprintf("%s: %s: %s", at, what, resp.Status)
	if msg := errorBody(resp); msg != "" {
		text += ": " + msg
	}
	switch code := resp.StatusCode; {
	case code == http.StatusUnauthorized:
		return errs.Unauthenticated.Errorf("%s", text)
	case code == http.StatusForbidden:
		return errs.PermissionDenied.Errorf("%s", text)
	case code == http.StatusNotFound:
		return errs.NotFound.Errorf("%s", text)
	case code == http.StatusTooManyRequests:
		return errs.ResourceExhausted.Errorf("%s", text)
	case code >= 500:
		return errs.Unavailable.Errorf(Unreachable+"%s", text)
	}
	return errs.FailedPrecondition.Errorf("%s", text)
}

// errorBody extracts the registry's own words (distribution-spec, error codes), at most 300 printable bytes.
func errorBody(resp *http.Response) string {
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 8<<10)) //nolint:errcheck // best effort
	var e struct {
		Errors []struct{ Code, Message string }
	}
	if json.Unmarshal(b, &e) != nil || len(e.Errors) == 0 {
		return ""
	}
	msg := strings.TrimSpace(e.Errors[0].Code + " " + e.Errors[0].Message)
	msg = strings.Map(func(r rune) rune {
		if !strconv.IsPrint(r) {
			return '?'
		}
		return r
	}, msg)
	return msg[:min(len(msg), 300)]
}

// drain reads a little of what is left, so that the connection can be used again, and closes the body.
func drain(resp *http.Response) {
	_, _ = io.CopyN(io.Discard, resp.Body, 16<<10) //nolint:errcheck // best effort
	_ = resp.Body.Close()                          //nolint:errcheck // read side
}
