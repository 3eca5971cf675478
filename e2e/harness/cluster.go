package harness

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Cluster is a control plane: etcd, kube-apiserver, kube-controller-manager and kube-scheduler of one upstream build,
// with RBAC, the node authorizer, TLS and service accounts as in a real one. It listens on loopback of the lab's network
// namespace. Nodes join it by StartNode.
type Cluster struct {
	Lab    *Lab
	Client kubernetes.Interface
	Config *rest.Config // of the administrator

	dir    string
	tokens map[string]string // user: token
	parts  []*Process
}

// Where the control plane listens, and what services get.
const (
	apiServer = "127.0.0.1:6443"
	etcd      = "http://127.0.0.1:2379"
	etcdPeer  = "http://127.0.0.1:2380"
	services  = "10.96.0.0/16"
)

// The users that have a token, with their groups.
func users(nodes []string) map[string]string {
	all := map[string]string{
		"admin": "system:masters", "system:kube-controller-manager": "", "system:kube-scheduler": "",
	}
	for _, n := range nodes {
		all["system:node:"+n] = "system:nodes"
	}
	return all
}

// StartCluster runs a control plane that knows the given nodes and returns when it answers.
func (l *Lab) StartCluster(ctx context.Context, nodes ...string) (*Cluster, error) {
	c := &Cluster{Lab: l, dir: filepath.Join(l.Run, "cluster"), tokens: map[string]string{}}
	if err := errors.Join(os.MkdirAll(c.dir, 0o700), c.secrets(nodes)); err != nil {
		return nil, err
	}
	for _, start := range []func(context.Context) error{c.startEtcd, c.startAPI, c.startControllers} {
		if err := start(ctx); err != nil {
			return c, errors.Join(err, c.Stop())
		}
	}
	return c, nil
}

// secrets makes the certificate authority, the server's certificate, the key of service accounts and the tokens.
func (c *Cluster) secrets(nodes []string) error {
	if err := makePKI(c.dir); err != nil {
		return err
	}
	text := ""
	for user, group := range users(nodes) {
		c.tokens[user] = rand.Text()
		text += fmt.Sprintf("%s,%s,%s,%q\n", c.tokens[user], user, user, group)
	}
	if err := os.WriteFile(filepath.Join(c.dir, "tokens.csv"), []byte(text), 0o600); err != nil {
		return err
	}
	for user := range c.tokens {
		if _, err := c.Kubeconfig(user, c.tokens[user]); err != nil {
			return err
		}
	}
	rc, err := clientcmd.BuildConfigFromFlags("", c.kubeconfig("admin"))
	if err != nil {
		return err
	}
	// By content, not by name: client-go keeps a connection's settings by the file's name, for the next cluster too.
	if rc.CAData, err = os.ReadFile(rc.CAFile); err != nil {
		return err
	}
	rc.CAFile = ""
	rc.QPS, rc.Burst = 500, 1000
	c.Config = rc
	c.Client, err = kubernetes.NewForConfig(rc)
	return err
}

// Token is a user's bearer token.
func (c *Cluster) Token(user string) string { return c.tokens[user] }

func (c *Cluster) kubeconfig(user string) string {
	return filepath.Join(c.dir, user+".kubeconfig")
}

// Kubeconfig writes a kubeconfig for a bearer of a token and returns its path.
func (c *Cluster) Kubeconfig(name, token string) (string, error) {
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: lab, cluster: {server: "https://%s", certificate-authority: %q}}]
users: [{name: user, user: {token: %q}}]
contexts: [{name: lab, context: {cluster: lab, user: user}}]
current-context: lab
`, apiServer, filepath.Join(c.dir, "ca.crt"), token)
	return c.kubeconfig(name), os.WriteFile(c.kubeconfig(name), []byte(text), 0o600)
}

// run starts one of the programs in the multi-call binary, under its own name, which is also that of its log and pid
// file.
func (c *Cluster) run(name string, args ...string) (*Process, error) {
	path, err := c.program(name)
	if err != nil {
		return nil, err
	}
	p, err := Start(c.Lab.Logs(), name, nil, append([]string{path}, args...)...)
	if err == nil {
		c.parts = append(c.parts, p)
	}
	return p, err
}

func (c *Cluster) program(name string) (string, error) {
	path := filepath.Join(c.dir, name)
	if err := os.Symlink(filepath.Join(c.Lab.Tool, "cluster"), path); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	return path, nil
}

// ControlPlane are the names of a control plane's processes, in the order in which they are stopped.
func ControlPlane() []string {
	return []string{"kube-scheduler", "kube-controller-manager", "kube-apiserver", "etcd"}
}

func (c *Cluster) startEtcd(ctx context.Context) error {
	p, err := c.run("etcd", "--data-dir", filepath.Join(c.Lab.Dir, "etcd"), "--listen-client-urls", etcd, "--advertise-client-urls", etcd,
		"--listen-peer-urls", etcdPeer, "--initial-advertise-peer-urls", etcdPeer, "--initial-cluster", "default="+etcdPeer,
		"--unsafe-no-fsync", "--log-level", "warn") // a lab's data need not survive the machine
	if err != nil {
		return err
	}
	return Until(ctx, 20*time.Millisecond, p, func() error { _, err := Fetch(etcd + "/health"); return err })
}

func (c *Cluster) startAPI(ctx context.Context) error {
	file := func(name string) string { return filepath.Join(c.dir, name) }
	p, err := c.run("kube-apiserver", "--etcd-servers", etcd, "--secure-port", "6443", "--bind-address", "127.0.0.1",
		"--advertise-address", "192.0.2.1", "--tls-cert-file", file("server.crt"), "--tls-private-key-file", file("server.key"),
		"--token-auth-file", file("tokens.csv"), "--authorization-mode", "Node,RBAC", "--service-cluster-ip-range", services,
		"--service-account-issuer", "https://lab", "--service-account-key-file", file("sa.pub"), "--service-account-signing-key-file", file("sa.key"),
		"--enable-admission-plugins", "NodeRestriction", "--allow-privileged", "--max-requests-inflight", "2000", "--max-mutating-requests-inflight", "1000",
		"--kubelet-certificate-authority", "", "--enable-priority-and-fairness=false", "--watch-cache=true")
	if err != nil {
		return err
	}
	return Until(ctx, 50*time.Millisecond, p, func() error {
		return c.Client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
	})
}

func (c *Cluster) startControllers(ctx context.Context) error {
	file := func(name string) string { return filepath.Join(c.dir, name) }
	m, err := c.run("kube-controller-manager", "--kubeconfig", c.kubeconfig("system:kube-controller-manager"), "--leader-elect=false",
		"--use-service-account-credentials", "--service-account-private-key-file", file("sa.key"), "--root-ca-file", file("ca.crt"),
		"--bind-address", "127.0.0.1",
		"--kube-api-qps", "200", "--kube-api-burst", "400", "--authentication-kubeconfig", c.kubeconfig("system:kube-controller-manager"),
		"--authorization-kubeconfig", c.kubeconfig("system:kube-controller-manager"), "--cert-dir", file("manager"))
	if err != nil {
		return err
	}
	s, err := c.run("kube-scheduler", "--kubeconfig", c.kubeconfig("system:kube-scheduler"), "--leader-elect=false", "--bind-address", "127.0.0.1",
		"--kube-api-qps", "200", "--kube-api-burst", "400", "--authentication-kubeconfig", c.kubeconfig("system:kube-scheduler"),
		"--authorization-kubeconfig", c.kubeconfig("system:kube-scheduler"), "--cert-dir", file("scheduler"))
	if err != nil {
		return err
	}
	insecure := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{TLSClientConfig: selfSigned()}}
	for p, port := range map[*Process]int{m: 10257, s: 10259} {
		err := Until(ctx, 50*time.Millisecond, p, func() error {
			resp, err := insecure.Get(fmt.Sprintf("https://127.0.0.1:%d/healthz", port))
			if err != nil {
				return err
			}
			if err := resp.Body.Close(); err != nil || resp.StatusCode != http.StatusOK {
				return errors.Join(err, errors.New(resp.Status))
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Stop ends the control plane, the last started first.
func (c *Cluster) Stop() error {
	var all []error
	for i := len(c.parts) - 1; i >= 0; i-- {
		all = append(all, c.parts[i].Stop())
	}
	c.parts = nil
	return errors.Join(all...)
}
