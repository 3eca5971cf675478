package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"sync/atomic"

	"github.com/berth-project/berth/proto/errs"
)

// Repository is one pull's view of one repository: its hosts in order, mirrors first, each with its own
// credential, token and connections. It may be used by many goroutines. Close it; bodies that are still open
// stay usable.
type Repository struct {
	ref    Reference
	cfg    *Config
	conns  []*conn
	closed atomic.Bool
}

// conn is one host of a repository.
type conn struct {
	host  *host
	cfg   *Config
	ns    string // the name's domain, told to mirrors as containerd does ("?ns=")
	auth  *authorizer
	home  http.RoundTripper // to the host itself
	away  http.RoundTripper // to redirect targets and token endpoints: no client certificate
	pools []*http.Transport
}

// Open reads the hosts files for ref and prepares connections; it sends nothing. cred may be nil. A hosts file
// that does not parse is errs.FailedPrecondition: pulling past a mirror that an operator configured is worse.
func (c *Client) Open(ref Reference, cred *Credential) (*Repository, error) {
	dir, err := findHostsDir(c.currentHostsDir(), ref.Domain)
	if err != nil {
		return nil, errs.FailedPrecondition.Wrap(err)
	}
	hosts, unknown, err := loadHosts(dir)
	if err != nil {
		return nil, errs.FailedPrecondition.Errorf("hosts of %s: %w", ref.Domain, err)
	}
	if len(unknown) > 0 {
		c.cfg.Log.Warn("unknown keys in hosts.toml", "dir", dir, "keys", unknown)
	}
	r := &Repository{ref: ref, cfg: &c.cfg}
	for _, h := range hosts {
		h.complete(ref.Domain)
		cn, err := newConn(h, &c.cfg, ref, cred)
		if err != nil {
			r.Close()
			return nil, errs.FailedPrecondition.Wrap(err)
		}
		r.conns = append(r.conns, cn)
	}
	return r, nil
}

func newConn(h *host, cfg *Config, ref Reference, cred *Credential) (*conn, error) {
	c := &conn{host: h, cfg: cfg, auth: &authorizer{scope: "repository:" + ref.Path + ":pull"}}
	if cred.covers(h, ref.Domain) {
		c.auth.cred = cred
	}
	if !h.upstream || canonicalHost(h.addr) != canonicalHost(ref.Domain) {
		c.ns = ref.Domain
	}
	home, err := newTransport(h, true)
	if err != nil {
		return nil, err
	}
	away, err := newTransport(h, false)
	if err != nil {
		return nil, err
	}
	c.home, c.away, c.pools = home, away, []*http.Transport{home, away}
	if h.guess {
		c.home = &guessing{Transport: home}
	}
	return c, nil
}

// Close gives idle connections back.
func (r *Repository) Close() {
	r.closed.Store(true)
	r.closeIdle()
}

func (r *Repository) closeIdle() {
	for _, c := range r.conns {
		for _, t := range c.pools {
			t.CloseIdleConnections()
		}
	}
}

// plainHTTP tells whether the host is talked to without TLS, so that a plain token endpoint or redirect is no
// downgrade.
func (c *conn) plainHTTP() bool {
	if g, ok := c.home.(*guessing); ok {
		return g.plain.Load()
	}
	return c.host.scheme == "http"
}

// url is the address of an API path such as "manifests/latest".
func (c *conn) url(ref Reference, what string) string {
	u := url.URL{Scheme: c.host.scheme, Host: c.host.addr, Path: c.host.path + "/" + ref.Path + "/" + what}
	if c.ns != "" {
		u.RawQuery = url.Values{"ns": {c.ns}}.Encode()
	}
	return u.String()
}

// each runs try on every host that use accepts, until one succeeds. The error is the registry's own where it was
// asked, with what the mirrors said before it in the text.
func (r *Repository) each(ctx context.Context, use func(*host) bool, try func(*conn) error) error {
	var first []error
	for _, c := range r.conns {
		if !use(c.host) {
			continue
		}
		err := try(c)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return err
		}
		first = append(first, err)
	}
	switch len(first) {
	case 0:
		return errs.FailedPrecondition.Errorf("%s: no host is configured for this", r.ref.Domain)
	case 1:
		return first[0]
	}
	last := first[len(first)-1]
	return errs.Of(last).Errorf("%w (before that: %w)", last, errors.Join(first[:len(first)-1]...))
}

// get sends one request to the host with its authentication, follows redirects without it, and answers 401s a
// bounded number of times. The response may have any status that is not worth another try.
func (c *conn) get(ctx context.Context, method, address string, header http.Header) (*http.Response, error) {
	for round := 0; ; round++ {
		used := c.auth.current()
		req, err := http.NewRequestWithContext(ctx, method, address, nil)
		if err != nil {
			return nil, errs.InvalidArgument.Wrap(err)
		}
		for _, from := range []http.Header{c.host.header, header} {
			for k, v := range from {
				req.Header[k] = v
			}
		}
		if used != "" {
			req.Header.Set("Authorization", used)
		}
		req.Header.Set("User-Agent", c.cfg.UserAgent)
		resp, err := c.retrying(req, c.home)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode == http.StatusUnauthorized && round < 2 {
			err := c.auth.answer(ctx, c, resp, used)
			drain(resp)
			if err != nil {
				return nil, err
			}
			continue
		}
		return c.follow(resp, header)
	}
}

// follow walks redirects. Only header, never the host's own headers or authorization, goes to their targets, and
// https never becomes http. A target that wants authentication does not get it.
func (c *conn) follow(resp *http.Response, header http.Header) (*http.Response, error) {
	for range maxRedirects {
		switch resp.StatusCode {
		case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther,
			http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		default:
			return resp, nil
		}
		from := resp.Request
		to, err := resp.Location()
		drain(resp)
		if err != nil {
			return nil, errs.Unavailable.Errorf("%s: redirect: %w", c.host, err)
		}
		if to.Scheme != "https" && (to.Scheme != "http" || from.URL.Scheme == "https") || to.User != nil {
			return nil, errs.PermissionDenied.Errorf("%s: redirect to %s://%s is refused", c.host, to.Scheme, to.Host)
		}
		req, err := http.NewRequestWithContext(from.Context(), from.Method, to.String(), nil)
		if err != nil {
			return nil, errs.Unavailable.Errorf("%s: redirect: %w", c.host, err)
		}
		via, carry := http.RoundTripper(c.away), header
		if to.Scheme == from.URL.Scheme && to.Host == c.host.addr && to.Host == from.URL.Host {
			via, carry = c.home, from.Header // only another path on the host itself
		}
		for k, v := range carry {
			req.Header[k] = v
		}
		req.Header.Set("User-Agent", c.cfg.UserAgent)
		if resp, err = c.retrying(req, via); err != nil {
			return nil, fmt.Errorf("%s: redirect: %w", c.host, err)
		}
		if resp.StatusCode == http.StatusUnauthorized {
			drain(resp)
			return nil, errs.PermissionDenied.Errorf("%s: redirect to %s wants a login of its own", c.host, to.Host)
		}
	}
	drain(resp)
	return nil, errs.Unavailable.Errorf("%s: more than %d redirects", c.host, maxRedirects)
}
