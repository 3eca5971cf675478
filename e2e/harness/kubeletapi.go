package harness

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/client-go/util/exec"
)

// URL is a path of the kubelet's API.
func (k *Kubelet) URL(path string) string { return fmt.Sprintf("https://127.0.0.1:%d%s", k.Port, path) }

// Client speaks with the kubelet's API, as anybody and believing any certificate.
func (k *Kubelet) Client() *http.Client {
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}} //nolint:gosec // loopback
}

// Stream asks the kubelet's API for something and returns the answer's body.
func (k *Kubelet) Stream(ctx context.Context, method, path string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, method, k.URL(path), nil)
	if err != nil {
		return nil, err
	}
	resp, err := k.Client().Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
		return nil, errors.Join(fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, b), resp.Body.Close())
	}
	return resp.Body, nil
}

// Ask is Stream with the whole body, within ten seconds.
func (k *Kubelet) Ask(method, path string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	body, err := k.Stream(ctx, method, path)
	if err != nil {
		return "", err
	}
	defer body.Close() //nolint:errcheck // read only
	b, err := io.ReadAll(body)
	return string(b), err
}

// Logs are a container's, as `kubectl logs` gets them. query is "previous=true" and the like.
func (k *Kubelet) Logs(p *Pod, container, query string) (string, error) {
	return k.Ask(http.MethodGet, fmt.Sprintf("/containerLogs/%s/%s/%s?%s", p.Metadata.Namespace, p.Metadata.Name, container, query))
}

// Run runs a command in a container and returns what it prints.
func (k *Kubelet) Run(p *Pod, container string, cmd ...string) (string, error) {
	q := url.Values{"cmd": {strings.Join(cmd, " ")}} // the kubelet splits it at spaces
	return k.Ask(http.MethodPost, fmt.Sprintf("/run/%s/%s/%s?%s", p.Metadata.Namespace, p.Metadata.Name, container, q.Encode()))
}

// Exec is `kubectl exec`, over "spdy" or "websocket". It returns the command's exit code.
func (k *Kubelet) Exec(ctx context.Context, over string, p *Pod, container string, cmd []string, o remotecommand.StreamOptions) (int, error) {
	q := url.Values{"command": cmd}
	for name, on := range map[string]bool{"input": o.Stdin != nil, "output": o.Stdout != nil, "error": o.Stderr != nil, "tty": o.Tty} {
		if on {
			q.Set(name, "1")
		}
	}
	u, err := url.Parse(k.URL(fmt.Sprintf("/exec/%s/%s/%s?%s", p.Metadata.Namespace, p.Metadata.Name, container, q.Encode())))
	if err != nil {
		return 0, err
	}
	conf := &rest.Config{TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
	var x remotecommand.Executor
	if over == "websocket" {
		x, err = remotecommand.NewWebSocketExecutor(conf, http.MethodGet, u.String())
	} else {
		x, err = remotecommand.NewSPDYExecutor(conf, http.MethodPost, u)
	}
	if err != nil {
		return 0, err
	}
	err = x.StreamWithContext(ctx, o)
	if exit := (utilexec.CodeExitError{}); errors.As(err, &exit) {
		return exit.Code, nil
	}
	return 0, err
}
