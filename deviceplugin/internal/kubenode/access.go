package kubenode

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/berth-project/berth/proto/errs"
)

// serviceAccount is where a pod finds its own (kubernetes.io/docs/tasks/run-application/access-api-from-pod).
const serviceAccount = "/var/run/secrets/kubernetes.io/serviceaccount"

// Open makes a client of a node's object by a kubeconfig file, or without one as a pod does. Tokens in files and client
// certificates are read anew for each request and handshake: they are renewed in place. A kubeconfig whose credentials
// come from a program is refused (Unimplemented): this process executes nothing.
func Open(kubeconfig, node string) (*Client, error) {
	if node == "" {
		return nil, errs.InvalidArgument.Errorf("the node's name is needed: cluster.node, or $NODE_NAME")
	}
	a, err := inPod()
	if kubeconfig != "" {
		a, err = read(kubeconfig)
	}
	if err != nil {
		return nil, err
	}
	settings, err := a.tls()
	if err != nil {
		return nil, err
	}
	dialer := &net.Dialer{Timeout: callTime, KeepAlive: 30 * time.Second}
	return &Client{
		server: strings.TrimRight(a.Server, "/"), name: node, token: a.token,
		http: &http.Client{Transport: &http.Transport{
			TLSClientConfig: settings, DialContext: dialer.DialContext, TLSHandshakeTimeout: callTime,
			ResponseHeaderTimeout: callTime, ForceAttemptHTTP2: true, IdleConnTimeout: watchTime,
			HTTP2: &http.HTTP2Config{SendPingTimeout: 30 * time.Second, PingTimeout: callTime}, // a server that is gone says no goodbye to a watch
		}},
	}, nil
}

// access is a cluster and a user of a kubeconfig (client.config.k8s.io v1), as far as it is understood.
type access struct {
	Server     string `json:"server"`
	Authority  string `json:"certificate-authority"`
	Authorized []byte `json:"certificate-authority-data"`
	ServerName string `json:"tls-server-name"`
	Insecure   bool   `json:"insecure-skip-tls-verify"`
	ProxyURL   string `json:"proxy-url"`

	Token     string `json:"token"`
	TokenFile string `json:"tokenFile"`
	Cert      string `json:"client-certificate"`
	CertData  []byte `json:"client-certificate-data"`
	Key       string `json:"client-key"`
	KeyData   []byte `json:"client-key-data"`
	Exec      any    `json:"exec"`
	Provider  any    `json:"auth-provider"`
}

func inPod() (access, error) {
	host, port := os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT")
	if host == "" || port == "" {
		return access{}, errs.FailedPrecondition.Errorf("this is no pod ($KUBERNETES_SERVICE_HOST is not set): set cluster.kubeconfig")
	}
	return access{
		Server: "https://" + net.JoinHostPort(host, port), Authority: filepath.Join(serviceAccount, "ca.crt"), TokenFile: filepath.Join(serviceAccount, "token"),
	}, nil
}

// read takes the current context of a kubeconfig. Paths in it are relative to its directory.
func read(path string) (access, error) {
	b, err := os.ReadFile(path) //nolint:gosec // the operator's own choice
	if err != nil {
		return access{}, err
	}
	var file struct {
		Current  string `json:"current-context"`
		Contexts []struct {
			Name    string
			Context struct{ Cluster, User string }
		}
		Clusters []struct {
			Name    string
			Cluster access
		}
		Users []struct {
			Name string
			User access
		}
	}
	if err := yaml.Unmarshal(b, &file); err != nil {
		return access{}, errs.InvalidArgument.Errorf("%s: %w", path, err)
	}
	var a, user *access
	for _, c := range file.Contexts {
		for i, x := range file.Clusters {
			if c.Name == file.Current && x.Name == c.Context.Cluster {
				a = &file.Clusters[i].Cluster
			}
		}
		for i, x := range file.Users {
			if c.Name == file.Current && x.Name == c.Context.User {
				user = &file.Users[i].User
			}
		}
	}
	switch {
	case a == nil || user == nil:
		return access{}, errs.InvalidArgument.Errorf("%s: context %q has no cluster or no user", path, file.Current)
	case user.Exec != nil || user.Provider != nil:
		return access{}, errs.Unimplemented.Errorf("%s: credentials by a program are not taken: use a token, a token's file or a client certificate", path)
	case !strings.HasPrefix(a.Server, "https://"):
		return access{}, errs.InvalidArgument.Errorf("%s: server %q: want https", path, a.Server)
	case a.Insecure || a.ProxyURL != "":
		return access{}, errs.Unimplemented.Errorf("%s: insecure-skip-tls-verify and proxy-url are not taken", path)
	}
	a.Token, a.TokenFile, a.Cert, a.CertData, a.Key, a.KeyData = user.Token, user.TokenFile, user.Cert, user.CertData, user.Key, user.KeyData
	for _, p := range []*string{&a.Authority, &a.TokenFile, &a.Cert, &a.Key} {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(filepath.Dir(path), *p)
		}
	}
	return *a, nil
}

// token is the bearer's, or "" where a certificate speaks for us.
func (a access) token() (string, error) {
	if a.TokenFile == "" {
		return a.Token, nil
	}
	b, err := os.ReadFile(a.TokenFile)
	return strings.TrimSpace(string(b)), err
}

func (a access) tls() (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: a.ServerName}
	pem := a.Authorized
	if a.Authority != "" {
		var err error
		if pem, err = os.ReadFile(a.Authority); err != nil {
			return nil, err
		}
	}
	if len(pem) > 0 { // without one: the system's
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return nil, errs.InvalidArgument.Errorf("certificate authority %s: no certificate in it", a.Authority)
		}
	}
	if a.Cert == "" && len(a.CertData) == 0 {
		return conf, nil
	}
	conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		cert, cerr := content(a.Cert, a.CertData)
		key, kerr := content(a.Key, a.KeyData)
		if err := errors.Join(cerr, kerr); err != nil {
			return nil, err
		}
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("client certificate %s: %w", a.Cert, err)
		}
		return &pair, nil
	}
	return conf, nil
}

func content(path string, data []byte) ([]byte, error) {
	if path == "" {
		return data, nil
	}
	return os.ReadFile(path)
}
