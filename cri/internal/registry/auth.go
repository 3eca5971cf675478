package registry

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"

	"github.com/berth-project/berth/proto/errs"
)

// Credential is what a caller has for one registry. It is used for that registry alone: ServerAddress names it,
// and where that is empty it is the registry in the image's name.
type Credential struct {
	Username, Password string
	// IdentityToken is an OAuth2 refresh token, exchanged at the token endpoint.
	IdentityToken string
	// RegistryToken is itself the bearer token.
	RegistryToken string
	ServerAddress string
}

// String hides everything secret, so that a credential in a log line says only that there is one.
func (c *Credential) String() string {
	if c == nil {
		return "no credential"
	}
	return "credential for " + c.ServerAddress
}

// GoString is String, for %#v.
func (c *Credential) GoString() string { return c.String() }

// covers tells whether the credential may be shown to h, a host configured for domain.
func (c *Credential) covers(h *host, domain string) bool {
	if c == nil {
		return false
	}
	if c.ServerAddress == "" {
		return h.upstream
	}
	want := canonicalHost(c.ServerAddress)
	return want == canonicalHost(h.addr) || h.upstream && want == canonicalHost(domain)
}

// canonicalHost strips scheme and path from a server address and unifies the names of Docker Hub.
func canonicalHost(s string) string {
	if _, rest, ok := strings.Cut(s, "://"); ok {
		s = rest
	}
	s, _, _ = strings.Cut(s, "/")
	switch s = strings.ToLower(s); s {
	case "index.docker.io", "registry-1.docker.io":
		return "docker.io"
	}
	return s
}

// authorizer holds what one host has been told and answered during one pull.
//
//	plain --401 Basic--> basic            (credential on every request)
//	plain --401 Bearer--> token --401--> new token --401--> refused
type authorizer struct {
	cred  *Credential // nil where none may be used
	scope string

	mu     sync.Mutex
	header string // value of Authorization, empty until a challenge
}

func (a *authorizer) current() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.header == "" && a.cred != nil && a.cred.RegistryToken != "" {
		a.header = "Bearer " + a.cred.RegistryToken
	}
	return a.header
}

// answer gets a new header for a 401 to a request that carried used. Requests that were refused together share
// one answer. The endpoint must be https unless the registry itself is reached by plain http.
func (a *authorizer) answer(ctx context.Context, c *conn, resp *http.Response, used string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.header != used {
		return nil // another request got an answer meanwhile
	}
	for _, ch := range parseChallenges(resp.Header.Values("WWW-Authenticate")) {
		switch ch.scheme {
		case "bearer":
			token, err := a.token(ctx, c, ch.params)
			if err != nil {
				return err
			}
			a.header = "Bearer " + token
			return nil
		case "basic":
			if a.cred == nil || a.cred.Username == "" && a.cred.Password == "" {
				continue
			}
			var req http.Request
			req.Header = http.Header{}
			req.SetBasicAuth(a.cred.Username, a.cred.Password)
			if h := req.Header.Get("Authorization"); h != used {
				a.header = h
				return nil
			}
		}
	}
	return errs.Unauthenticated.Errorf("%s: %s", c.host, refusal(resp))
}

func refusal(resp *http.Response) string {
	if msg := errorBody(resp); msg != "" {
		return "authentication required: " + msg
	}
	return "authentication required"
}

// token asks the token endpoint of a bearer challenge (distribution-spec, token authentication).
func (a *authorizer) token(ctx context.Context, c *conn, params map[string]string) (string, error) {
	realm, err := url.Parse(params["realm"])
	if err != nil || realm.Host == "" || realm.User != nil || realm.Scheme != "https" && realm.Scheme != "http" {
		return "", errs.Unauthenticated.Errorf("%s: token endpoint %.200q is no URL", c.host, params["realm"])
	}
	if realm.Scheme == "http" && !c.plainHTTP() {
		return "", errs.Unauthenticated.Errorf("%s: token endpoint %s is not https", c.host, realm.Host)
	}
	if a.cred != nil && a.cred.RegistryToken != "" {
		return "", errs.Unauthenticated.Errorf("%s refused the registry token", c.host)
	}
	form := url.Values{}
	if s := params["service"]; s != "" {
		form.Set("service", s)
	}
	form.Add("scope", a.scope)
	req, err := a.tokenRequest(ctx, realm, form)
	if err != nil {
		return "", err
	}
	req.Header.Set("User-Agent", c.cfg.UserAgent)
	via := http.RoundTripper(c.away)
	if realm.Host == c.host.addr {
		via = c.home
	}
	resp, err := c.retrying(req, via)
	if err != nil {
		return "", fmt.Errorf("token endpoint: %w", err)
	}
	defer drain(resp)
	if resp.StatusCode != http.StatusOK {
		return "", statusError(resp, realm.Scheme+"://"+realm.Host, "token")
	}
	var t struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
	}
	b, err := readAll(ctx, c.cfg, resp.Body, maxToken)
	if err != nil {
		return "", fmt.Errorf("token endpoint %s: %w", realm.Host, err)
	}
	if err := json.Unmarshal(b, &t); err != nil {
		return "", errs.Unauthenticated.Errorf("token endpoint %s: %w", realm.Host, err)
	}
	if t.Token == "" {
		t.Token = t.AccessToken
	}
	if t.Token == "" || strings.ContainsAny(t.Token, "\r\n") {
		return "", errs.Unauthenticated.Errorf("token endpoint %s sent no usable token", realm.Host)
	}
	return t.Token, nil
}

// tokenRequest is a GET with basic authentication, or for an identity token the OAuth2 POST.
func (a *authorizer) tokenRequest(ctx context.Context, realm *url.URL, form url.Values) (*http.Request, error) {
	if a.cred != nil && a.cred.IdentityToken != "" {
		form.Set("grant_type", "refresh_token")
		form.Set("refresh_token", a.cred.IdentityToken)
		form.Set("client_id", "berth")
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, realm.String(), strings.NewReader(form.Encode()))
		if err != nil {
			return nil, errs.Unauthenticated.Errorf("token endpoint: %w", err)
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		return req, nil
	}
	u := *realm
	q := u.Query()
	for k, v := range form {
		q[k] = append(q[k], v...)
	}
	u.RawQuery = q.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, errs.Unauthenticated.Errorf("token endpoint: %w", err)
	}
	if a.cred != nil && (a.cred.Username != "" || a.cred.Password != "") {
		req.SetBasicAuth(a.cred.Username, a.cred.Password)
	}
	return req, nil
}

// maxToken bounds a token endpoint's answer, in bytes.
const maxToken = 1 << 20

type challenge struct {
	scheme string // lower case
	params map[string]string
}

// parseChallenges reads WWW-Authenticate values (RFC 9110, 11.6.1): scheme, then key=value or key="value".
func parseChallenges(values []string) []challenge {
	var out []challenge
	for _, v := range values {
		scheme, rest, _ := strings.Cut(strings.TrimSpace(v), " ")
		if scheme == "" || len(v) > 8<<10 {
			continue
		}
		ch := challenge{scheme: strings.ToLower(scheme), params: map[string]string{}}
		for rest != "" {
			var key, val string
			rest = strings.TrimLeft(rest, " ,")
			key, rest, _ = strings.Cut(rest, "=")
			if strings.HasPrefix(rest, `"`) {
				val, rest, _ = strings.Cut(rest[1:], `"`)
			} else {
				val, rest, _ = strings.Cut(rest, ",")
			}
			ch.params[strings.ToLower(strings.TrimSpace(key))] = val
		}
		out = append(out, ch)
	}
	return out
}
