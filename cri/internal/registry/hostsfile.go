package registry

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// host is one place that serves a registry's content.
type host struct {
	scheme, addr string // "https", "mirror.example:5000"
	path         string // API root, "/v2" unless overridden
	pull         bool
	resolve      bool
	upstream     bool // the registry itself, not a mirror
	guess        bool // loopback without configuration: https, then http

	header      http.Header
	ca          []string    // files
	client      [][2]string // certificate and key file; key empty means in the same file
	skipVerify  bool
	dialTimeout time.Duration
}

// String names the host in errors.
func (h *host) String() string { return h.scheme + "://" + h.addr }

// hostTable is one host's keys in hosts.toml (containerd docs/hosts.md). ca, client and header values may be
// strings or lists, so they are decoded by hand.
type hostTable struct {
	Capabilities []string       `toml:"capabilities"`
	CA           any            `toml:"ca"`
	Client       any            `toml:"client"`
	SkipVerify   bool           `toml:"skip_verify"`
	Header       map[string]any `toml:"header"`
	OverridePath bool           `toml:"override_path"`
	DialTimeout  string         `toml:"dial_timeout"`
}

type hostsFile struct {
	hostTable
	Server string               `toml:"server"`
	Host   map[string]hostTable `toml:"host"`
}

// findHostsDir returns the directory that configures domain, or "": "<host>_<port>_", "<host:port>", "_default".
func findHostsDir(root, domain string) (string, error) {
	if root == "" {
		return "", nil
	}
	names := []string{domain, "_default"}
	if i := strings.LastIndexByte(domain, ':'); i > 0 {
		names = append([]string{domain[:i] + "_" + domain[i+1:] + "_"}, names...)
	}
	for _, n := range names {
		dir := filepath.Join(root, n)
		_, err := os.Stat(dir)
		if err == nil {
			return dir, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("hosts directory: %w", err)
		}
	}
	return "", nil
}

// loadHosts reads a hosts directory: hosts.toml, or where there is none Docker's *.crt, *.cert and *.key files.
// The last host returned is the registry itself; its addr is empty where the file names no server. unknown lists
// keys of the file that mean nothing here.
func loadHosts(dir string) (hosts []*host, unknown []string, err error) {
	if dir == "" {
		return []*host{{pull: true, resolve: true, upstream: true}}, nil, nil
	}
	file := filepath.Join(dir, "hosts.toml")
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(b) == 0 {
		h, err := loadCertFiles(dir)
		return []*host{h}, nil, err
	}
	if err != nil {
		return nil, nil, err
	}
	hosts, unknown, err = parseHosts(b, dir)
	if err != nil {
		return nil, unknown, fmt.Errorf("%s: %w", file, err)
	}
	return hosts, unknown, nil
}

// parseHosts parses one hosts.toml; relative certificate paths are relative to dir.
func parseHosts(b []byte, dir string) (hosts []*host, unknown []string, err error) {
	var f hostsFile
	dec := toml.NewDecoder(bytes.NewReader(b)).DisallowUnknownFields()
	var strict *toml.StrictMissingError
	if err := dec.Decode(&f); errors.As(err, &strict) {
		for i := range strict.Errors {
			unknown = append(unknown, strings.Join(strict.Errors[i].Key(), "."))
		}
	} else if err != nil {
		return nil, nil, err
	}
	for _, name := range hostOrder(b) {
		h, err := f.Host[name].host(name, dir)
		if err != nil {
			return nil, unknown, fmt.Errorf("host %q: %w", name, err)
		}
		hosts = append(hosts, h)
	}
	up, err := f.hostTable.host(f.Server, dir)
	if err != nil {
		return nil, unknown, fmt.Errorf("server %q: %w", f.Server, err)
	}
	up.upstream = true
	return append(hosts, up), unknown, nil
}

// hostOrder returns the names of the [host."…"] tables as they stand in the file: mirrors are tried in this
// order, and a decoded map has none.
func hostOrder(b []byte) []string {
	var p unstable.Parser
	p.Reset(b)
	var names []string
	seen := map[string]bool{}
	for p.NextExpression() {
		e := p.Expression()
		if e.Kind != unstable.Table {
			continue
		}
		var parts []string
		for it := e.Key(); it.Next(); {
			parts = append(parts, string(it.Node().Data))
		}
		if len(parts) >= 2 && parts[0] == "host" && !seen[parts[1]] {
			seen[parts[1]] = true
			names = append(names, parts[1])
		}
	}
	return names
}

func (t hostTable) host(server, dir string) (*host, error) {
	h := &host{skipVerify: t.SkipVerify}
	var err error
	if h.scheme, h.addr, h.path, err = parseServer(server, t.OverridePath); err != nil {
		return nil, err
	}
	if h.pull, h.resolve, err = capabilities(t.Capabilities); err != nil {
		return nil, err
	}
	if h.ca, err = stringList(t.CA); err != nil {
		return nil, fmt.Errorf("ca: %w", err)
	}
	for i := range h.ca {
		h.ca[i] = absPath(h.ca[i], dir)
	}
	if h.client, err = clientPairs(t.Client, dir); err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	for k, v := range t.Header {
		list, err := stringList(v)
		if err != nil {
			return nil, fmt.Errorf("header %q: %w", k, err)
		}
		if h.header == nil {
			h.header = http.Header{}
		}
		h.header[http.CanonicalHeaderKey(k)] = list
	}
	if t.DialTimeout != "" {
		if h.dialTimeout, err = time.ParseDuration(t.DialTimeout); err != nil {
			return nil, fmt.Errorf("dial_timeout: %w", err)
		}
	}
	return h, nil
}

// parseServer splits a server URL; one without a scheme is https. An empty server leaves all parts empty.
func parseServer(server string, override bool) (scheme, addr, root string, err error) {
	if server == "" {
		return "", "", "", nil
	}
	if !strings.HasPrefix(server, "http://") && !strings.HasPrefix(server, "https://") {
		server = "https://" + server
	}
	u, err := url.Parse(server)
	if err != nil {
		return "", "", "", err
	}
	if u.Host == "" || u.User != nil {
		return "", "", "", errors.New("want http(s)://host[:port][/path] without a user")
	}
	root = strings.TrimSuffix(u.Path, "/")
	if root != "" {
		root = path.Clean(root)
	}
	if !override && !strings.HasSuffix(root, "/v2") {
		root += "/v2"
	}
	return u.Scheme, u.Host, root, nil
}

func capabilities(list []string) (pull, resolve bool, err error) {
	if len(list) == 0 {
		return true, true, nil
	}
	for _, c := range list {
		switch strings.ToLower(c) {
		case "pull":
			pull = true
		case "resolve":
			resolve = true
		case "push", "referrers": // nothing here pushes
		default:
			return false, false, fmt.Errorf("unknown capability %q: have pull, resolve, push, referrers", c)
		}
	}
	return pull, resolve, nil
}

func stringList(v any) ([]string, error) {
	switch v := v.(type) {
	case nil:
		return nil, nil
	case string:
		return []string{v}, nil
	case []any:
		out := make([]string, len(v))
		for i, e := range v {
			s, ok := e.(string)
			if !ok {
				return nil, fmt.Errorf("want strings, have %T", e)
			}
			out[i] = s
		}
		return out, nil
	}
	return nil, fmt.Errorf("want a string or a list of strings, have %T", v)
}

func clientPairs(v any, dir string) ([][2]string, error) {
	if s, ok := v.(string); ok {
		return [][2]string{{absPath(s, dir), ""}}, nil
	}
	list, ok := v.([]any)
	if v != nil && !ok {
		return nil, fmt.Errorf("want a string, a list or a list of pairs, have %T", v)
	}
	var out [][2]string
	for _, e := range list {
		pair, err := stringList(e)
		if err != nil {
			return nil, err
		}
		switch {
		case len(pair) == 1:
			out = append(out, [2]string{absPath(pair[0], dir), ""})
		case len(pair) == 2 && pair[1] == "":
			out = append(out, [2]string{absPath(pair[0], dir), ""})
		case len(pair) == 2:
			out = append(out, [2]string{absPath(pair[0], dir), absPath(pair[1], dir)})
		default:
			return nil, fmt.Errorf("want [certificate, key], have %d strings", len(pair))
		}
	}
	return out, nil
}

func absPath(p, dir string) string {
	if filepath.IsAbs(p) {
		return p
	}
	return filepath.Join(dir, p)
}

// loadCertFiles reads Docker's layout: *.crt are CAs, *.cert client certificates with their *.key.
func loadCertFiles(dir string) (*host, error) {
	h := &host{pull: true, resolve: true, upstream: true}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		p := filepath.Join(dir, e.Name())
		switch filepath.Ext(e.Name()) {
		case ".crt":
			h.ca = append(h.ca, p)
		case ".cert":
			key := strings.TrimSuffix(p, ".cert") + ".key"
			if _, err := os.Stat(key); err != nil {
				key = ""
			}
			h.client = append(h.client, [2]string{p, key})
		}
	}
	return h, nil
}
