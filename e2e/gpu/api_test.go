package gpu

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/berth-project/berth/e2e/harness"
)

// apiServer runs etcd and a kube-apiserver that believes everybody who knows the token, in the lab's network
// namespace, until the test's end. It returns a client and a kubeconfig.
func apiServer(t *testing.T) (kubernetes.Interface, string) {
	t.Helper()
	dir := filepath.Join(node.lab.Run, "api")
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	private := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
	kubeconfig := filepath.Join(dir, "kubeconfig")
	config := `apiVersion: v1
kind: Config
clusters: [{name: lab, cluster: {server: "https://127.0.0.1:6443", insecure-skip-tls-verify: true}}]
users: [{name: admin, user: {token: secret}}]
contexts: [{name: lab, context: {cluster: lab, user: admin}}]
current-context: lab
`
	err = errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, "sa.key"), private, 0o600), os.WriteFile(kubeconfig, []byte(config), 0o600),
		os.WriteFile(filepath.Join(dir, "tokens.csv"), []byte("secret,admin,admin,system:masters\n"), 0o600))
	for _, name := range []string{"etcd", "kube-apiserver"} { // one program, which acts by its name
		err = errors.Join(err, os.Symlink(filepath.Join(node.lab.Tool, "cluster"), filepath.Join(dir, name)))
	}
	if err != nil {
		t.Fatal(err)
	}
	run := func(name string, args ...string) *harness.Process {
		t.Helper()
		p, err := harness.Start(node.lab.Logs(), name, nil, append([]string{filepath.Join(dir, name)}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := p.Stop(); err != nil {
				t.Error(err)
			}
		})
		return p
	}
	run("etcd", "--data-dir", filepath.Join(node.lab.Dir, "etcd"), "--unsafe-no-fsync", "--log-level", "warn")
	api := run("kube-apiserver", "--etcd-servers", "http://127.0.0.1:2379", "--bind-address", "127.0.0.1", "--advertise-address", "192.0.2.1", "--cert-dir", dir,
		"--authorization-mode", "AlwaysAllow", "--token-auth-file", filepath.Join(dir, "tokens.csv"), "--service-cluster-ip-range", "10.96.0.0/16",
		"--service-account-issuer", "https://lab", "--service-account-key-file", filepath.Join(dir, "sa.key"), "--service-account-signing-key-file", filepath.Join(dir, "sa.key"),
		"--disable-admission-plugins", "ServiceAccount")
	rc, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	client, err := kubernetes.NewForConfig(rc)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := harness.Until(ctx, 100*time.Millisecond, api, func() error {
		return client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
	}); err != nil {
		t.Fatal(fmt.Errorf("%w\n%s", err, api.Tail(15)))
	}
	return client, kubeconfig
}
